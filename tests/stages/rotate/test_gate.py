"""The gate passes right models with room to spare and names the first layer of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.arch import open_described
from dfrot.checkpoint import Checkpoint
from dfrot.errors import GateError, InputError
from dfrot.rotation.fuse import Fuser
from dfrot.rotation.rotation import Rotation
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.rotate.gate import gate
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

Make = Callable[..., Path]
TOKENS = torch.randint(0, 260, (1, 96), generator=torch.Generator().manual_seed(5))


def judge(model: Path, out: Path) -> dict[str, Any]:
    r1 = Rotation.load(out / "rotation.safetensors").matrix
    return gate(BlockRunner(*open_described(model)), BlockRunner(*open_described(out)), TOKENS, r1)


def prepare(make: Make, tmp_path: Path, **config: Any) -> tuple[Path, Path]:
    model, out = make(**config), tmp_path / "out"
    rotate(model, out, RotateSettings("hadamard", None, gate=False))
    return model, out


def change(folder: Path, name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    checkpoint = Checkpoint.open(folder)
    entry, value = checkpoint.entry(name), checkpoint.read(name)
    data = edit(value).to(entry.dtype).contiguous().flatten().view(torch.uint8).numpy().tobytes()
    with entry.file.open("r+b") as handle:
        handle.seek(entry.start)
        handle.write(data)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("seed", [0, 1])
def test_right_models_pass_with_room(make: Make, tmp_path: Path, dtype: torch.dtype, seed: int) -> None:
    model, out = prepare(make, tmp_path, dtype=dtype, seed=seed)
    record = judge(model, out)
    assert list(record["parts"]) == ["model.embed_tokens", *(f"model.layers.{n}" for n in range(3)), "lm_head"]
    for name, part in record["parts"].items():
        assert part["error"] < 0.5 * part["limit"], name
        if dtype != torch.float32:  # the measured effect of rounding is that of rounding
            assert 0.2 < part["error"] / part["rounding"] < 2, name


def test_massive_activations_do_not_trip_the_gate(make: Make, tmp_path: Path) -> None:
    model = make()
    change(model, "model.embed_tokens.weight", lambda w: torch.cat([w[:, :1] * 2000, w[:, 1:]], 1))
    change(model, "model.layers.1.input_layernorm.weight", lambda w: torch.cat([w[:2] * 40, w[2:]]))
    rotate(model, tmp_path / "out", RotateSettings("orthogonal", None, gate=False))
    judge(model, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    ],
)
def test_one_perturbed_tensor_is_found_and_its_layer_named(make: Make, tmp_path: Path, name: str) -> None:
    model, out = prepare(make, tmp_path)
    change(out, f"model.layers.1.{name}", lambda w: w * 1.15)
    with pytest.raises(GateError, match=r"^model\.layers\.1: the rotated weights differ"):
        judge(model, out)


@pytest.mark.parametrize("name", ["model.embed_tokens", "lm_head"])
def test_the_ends_are_judged_too(make: Make, tmp_path: Path, name: str) -> None:
    model, out = prepare(make, tmp_path)
    change(out, f"{name}.weight", lambda w: torch.where(torch.arange(260)[:, None] < 100, w, w * 1.2))
    with pytest.raises(GateError, match=f"^{name}: "):
        judge(model, out)


def test_the_sharper_dtype_is_judged_more_sharply(make: Make, tmp_path: Path) -> None:
    model, out = prepare(make, tmp_path, dtype=torch.float32)
    change(out, "model.layers.2.mlp.up_proj.weight", lambda w: w * 1.002)
    with pytest.raises(GateError, match=r"^model\.layers\.2: "):
        judge(model, out)


def wrong_head(read: Any) -> Any:
    """R2 of the neighbouring layer on layer 1's o_proj."""

    def patched(self: Fuser, rows: torch.Tensor, job: Any) -> torch.Tensor:
        if job.reads == "v" and job.layer == 1 and self.rotations.r2 is not None:
            heads = rows.reshape(len(rows), -1, self.arch.head_dim)
            return (heads @ self.rotations.r2[0]).reshape(rows.shape)
        return read(self, rows, job)  # type: ignore[no-any-return]

    return patched


def no_r4(read: Any) -> Any:
    def patched(self: Fuser, rows: torch.Tensor, job: Any) -> torch.Tensor:
        return rows if job.reads == "mlp" and job.layer == 2 else read(self, rows, job)

    return patched


@pytest.mark.parametrize(("plant", "layer"), [(wrong_head, 1), (no_r4, 2)])
def test_a_planted_error_is_never_published(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Any, layer: int
) -> None:
    model = make()
    monkeypatch.setattr(Fuser, "_rotate_columns", plant(Fuser._rotate_columns))
    with pytest.raises(GateError, match=rf"^model\.layers\.{layer}: "):
        rotate(model, tmp_path / "out", RotateSettings("hadamard", None))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_source_that_computes_no_numbers_is_to_blame(make: Make, tmp_path: Path) -> None:
    model, out = prepare(make, tmp_path)
    change(model, "model.layers.1.mlp.down_proj.weight", lambda w: torch.cat([w[:1] * 0 + 3e38, w[1:]]))
    with pytest.raises(InputError, match=r"model: model\.layers\.1 computes NaN or Inf on ordinary text"):
        judge(model, out)
