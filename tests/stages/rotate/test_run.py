from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.errors import ExistsError, GateError, InputError, MismatchError, ResourceError, UnsupportedError
from dfrot.quant.config import DfqConfig
from dfrot.rotation.rotation import ROTATION_FILE, Rotation, load_rotations
from dfrot.runtime.load import load_model
from dfrot.stages.rotate import run as stage_module
from dfrot.stages.rotate.run import plan, rotate
from dfrot.stages.rotate.settings import RotateSettings

Make = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
Logits = Callable[[Path], torch.Tensor]
TOKENS = torch.arange(40).reshape(1, 40) * 5


@pytest.mark.parametrize("method", ["dfrot", "hadamard", "orthogonal"])
@pytest.mark.parametrize("online", [True, False])
def test_rotated_folder_is_the_same_model(
    make: Make, text: str, tmp_path: Path, logits: Logits, method: str, online: bool, contents: Contents
) -> None:
    model, out = make(dtype=torch.float32), tmp_path / "out"
    record = rotate(model, out, RotateSettings(method, text, seqlen=64, rounds=3, online=online))
    assert torch.allclose(logits(out), logits(model), rtol=1e-3, atol=1e-4)
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["dtype"] == "float32"
    entry = DfqConfig.of(config)
    if online:
        assert entry is not None
        assert entry.scheme is None
        assert entry.online.r4 is not None
        assert (entry.online.r4.size, entry.online.r4.bases) == (96, (12,))
        assert entry.online.r3 is not None
        assert entry.online.r3.size == 8
    else:
        assert entry is None
    expected = {"config.json", "model.safetensors", "rotation.safetensors", "stage.json"}
    expected |= {"tokenizer.json", "tokenizer_config.json"} | ({"transforms.safetensors"} if online else set())
    assert set(contents(out)) == expected
    assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert Rotation.load(out / "rotation.safetensors").kind == method
    assert record["r1"]["orthogonality_error"] < 1e-12
    assert set(record["gate"]["parts"]) >= {"model.embed_tokens", "model.layers.2", "lm_head"}
    assert record["gate"]["logits"]["relative_error"] < 1e-3


def test_no_online_loads_as_an_ordinary_checkpoint(make: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, out = make(dtype=torch.float32), tmp_path / "out"
    rotate(model, out, RotateSettings("hadamard", None, online=False))
    with torch.no_grad():
        before, after = (AutoModelForCausalLM.from_pretrained(path)(TOKENS).logits for path in (model, out))
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4)


def test_none_copies_the_weights(make: Make, tmp_path: Path) -> None:
    model, out = make(), tmp_path / "out"
    record = rotate(model, out, RotateSettings("none", None))
    before, after = Checkpoint.open(model), Checkpoint.open(out)
    assert set(before.entries) == set(after.entries)
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.entries)
    assert after.config["tie_word_embeddings"] is True
    assert "quantization_config" not in after.config
    assert not (out / "rotation.safetensors").exists()
    assert record["online"] == {}


def test_the_record_of_dfrot_holds_refinement_and_inputs(make: Make, text: str, tmp_path: Path) -> None:
    rotate(make(), tmp_path / "out", RotateSettings("dfrot", text, seqlen=64, objective="rows", rounds=5))
    record = json.loads((tmp_path / "out" / "stage.json").read_text())
    refinement = record["refinement"]
    assert refinement["accepted"] == sorted(refinement["accepted"], reverse=True)
    assert refinement["objective"] <= refinement["objective_start"]
    assert record["massive"]["rows"] == 64 * 6
    assert record["request"]["settings"]["seed"] == 0
    assert len(record["request"]["dataset"]["train"]) == 64
    assert record["weights"] == Checkpoint.open(tmp_path / "out").digest()


def test_r1_for_outputs_lowers_their_error_on_held_out_rows(
    make: Make, text: str, tmp_path: Path, contents: Contents
) -> None:
    model = make()
    settings = RotateSettings("dfrot", text, seqlen=64, steps=50, transform_windows=3, align=True)
    for name in ("a", "b"):
        record = rotate(model, tmp_path / name, settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    refinement = record["refinement"]
    assert refinement["rows"] == 3 * 64 * 6
    assert refinement["clip"] == 0.85
    errors = dict(refinement["curve"])
    assert errors[refinement["best"]] == min(errors.values()) < errors[0]
    assert record["r1"]["orthogonality_error"] < 1e-12


def test_same_request_same_bytes_and_another_seed_other_bytes(make: Make, tmp_path: Path, contents: Contents) -> None:
    model = make()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        rotate(model, tmp_path / name, RotateSettings("orthogonal", None, seed=seed))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["model.safetensors"] != contents(tmp_path / "c")["model.safetensors"]


def test_the_record_names_the_block_of_the_transform(make: Make, tmp_path: Path) -> None:
    model = make(hidden_size=24 * 23, intermediate_size=92, num_hidden_layers=1)
    record = rotate(model, tmp_path / "out", RotateSettings("hadamard", None))
    assert record["r1"]["size"] == 552
    assert record["online"]["r4"]["block"] < 92


def test_r4_block_is_taken(make: Make, tmp_path: Path) -> None:
    record = rotate(make(), tmp_path / "out", RotateSettings("hadamard", None, r4_block=16))
    assert record["online"]["r4"] == {"size": 96, "block": 16, "bases": []}
    with pytest.raises(UnsupportedError, match="Hadamard block 18"):
        rotate(tmp_path / "model", tmp_path / "no", RotateSettings("hadamard", None, r4_block=18))


def test_rotations_in_blocks_mix_nothing_across_their_borders(make: Make, tmp_path: Path, logits: Logits) -> None:
    model = make(dtype=torch.float32)
    record = rotate(model, tmp_path / "out", RotateSettings("hadamard", None, block=8))
    assert torch.allclose(logits(tmp_path / "out"), logits(model), rtol=1e-3, atol=1e-4)
    rotations = load_rotations(tmp_path / "out" / ROTATION_FILE)
    for name, width in (("R1", record["r1"]["size"]), ("R2", record["r2"]["size"])):
        matrix = rotations[name].matrix.reshape(-1, width, width)
        inside = torch.block_diag(*[torch.ones(8, 8)] * (width // 8)).bool()
        assert bool((matrix[:, ~inside] == 0).all())
        assert bool((matrix[:, inside] != 0).all())
        assert record[name.lower()]["block"] == 8
    assert record["online"]["r4"]["block"] == 8


def test_progress_reaches_its_total(make: Make, text: str, tmp_path: Path) -> None:
    events: dict[str, list[tuple[int, int]]] = {}
    rotate(
        make(),
        tmp_path / "out",
        RotateSettings("dfrot", text, seqlen=32, rounds=1),
        progress=lambda label, done, total: events.setdefault(label, []).append((done, total)),
    )
    assert {"features", "refine", "rotate", "gate"} <= set(events)
    for label in ("features", "rotate", "gate"):
        assert events[label][-1][0] == events[label][-1][1]


def test_plan_describes_the_run_and_does_nothing(make: Make, text: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    model = make()
    summary = plan(model, RotateSettings("dfrot", text, seqlen=64))
    assert summary["units"] == 3 + 3
    assert summary["calibration_tokens"] == 64
    assert summary["online"]["r4"]["size"] == 96
    assert set(before) == {path for path in tmp_path.rglob("*") if model not in (path, *path.parents)}


# What is refused before work starts


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"method": "orthogonal"}, "mixes all channels"),
        ({"align": True, "dataset": "stdlib"}, "mixes all channels"),
        ({"block": 48}, "Hadamard block 48"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(make: Make, tmp_path: Path, options: dict[str, Any], error: str) -> None:
    with pytest.raises((InputError, UnsupportedError), match=error):
        rotate(
            make(), tmp_path / "out", RotateSettings(**({"method": "hadamard", "dataset": None, "block": 8} | options))
        )
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept(make: Make, tmp_path: Path, contents: Contents) -> None:
    model, out = make(), tmp_path / "out"
    rotate(model, out, RotateSettings("hadamard", None))
    before = contents(out)
    with pytest.raises(ExistsError, match="already exists"):
        rotate(model, out, RotateSettings("hadamard", None, seed=1))
    assert contents(out) == before
    assert rotate(model, out, RotateSettings("hadamard", None), resume=True)["r1"]["seed"] == 0
    assert rotate(model, out, RotateSettings("hadamard", None, seed=1), overwrite=True)["r1"]["seed"] == 1
    assert contents(out) != before


def test_a_model_is_not_rotated_onto_itself(make: Make, tmp_path: Path, contents: Contents) -> None:
    model = make()
    before = contents(model)
    with pytest.raises(InputError, match="is an input of this command"):
        rotate(model, tmp_path / "x" / ".." / "model", RotateSettings("hadamard", None), overwrite=True)
    assert contents(model) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "spin"}, "`method` 'spin'"),
        ({"seed": -1}, "`seed` -1"),
        ({"seqlen": 1}, "`seqlen` 1"),
        ({"method": "dfrot", "dataset": None}, "give a `dataset`"),
        ({"gamma": "much"}, "`gamma` 'much'"),
        ({"a_bits": 1}, "`a_bits` 1"),
        ({"massive_rule": "guess"}, "massive rule 'guess'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RotateSettings(**settings)


def test_rotated_checkpoints_are_not_rotated_again(make: Make, tmp_path: Path) -> None:
    rotate(make(), tmp_path / "out", RotateSettings("hadamard", None))
    with pytest.raises(UnsupportedError, match="already; start from the original"):
        rotate(tmp_path / "out", tmp_path / "twice", RotateSettings("hadamard", None))


def test_a_dataset_too_short_is_refused(make: Make, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too short: 100000 tokens needed"):
        rotate(make(), tmp_path / "out", RotateSettings("dfrot", text, seqlen=100000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]


def test_a_tokenizer_of_another_model_is_refused(make: Make, text: str, tmp_path: Path) -> None:
    model = make(vocab_size=60)
    with pytest.raises(InputError, match="copy the tokenizer of this model"):
        rotate(model, tmp_path / "out", RotateSettings("hadamard", text))


def test_no_space_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    monkeypatch.setattr(stage_module, "SPARE", 10**18)
    with pytest.raises(ResourceError, match="GB of disk"):
        rotate(model, tmp_path / "out", RotateSettings("hadamard", None))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", ["olmo2", "gemma2", "gemma3_text"])
def test_post_norm_models_have_all_rotations_but_r1(make: Make, text: str, tmp_path: Path, kind: str) -> None:
    tied = kind != "olmo2"
    model = make(model_type=kind, tie_word_embeddings=tied, attn_logit_softcapping=1.0, final_logit_softcapping=2.0)
    reason = f"{kind}: R1 cannot be fused: post_attention_layernorm has a learned gain between a residual writer"
    for method in ("dfrot", "orthogonal"):
        with pytest.raises(UnsupportedError, match=f"{reason}.*take `method=hadamard`"):
            rotate(model, tmp_path / "out", RotateSettings(method, text))
    settings = RotateSettings("hadamard", None)
    planned = plan(model, settings)
    record = rotate(model, tmp_path / "out", settings)
    assert planned["without"]["R1"].startswith(reason)
    assert record["without"] == planned["without"]
    assert planned["r1"] is None
    assert "r1" not in record
    assert set(load_rotations(tmp_path / "out" / "rotation.safetensors")) == {"R2"}
    before, after = Checkpoint.open(model), Checkpoint.open(tmp_path / "out")
    assert set(before.entries) == set(after.entries)
    changed = {name for name in before.entries if not torch.equal(before.read(name), after.read(name))}
    parts = ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    assert changed == {f"model.layers.{n}.{part}.weight" for n in range(3) for part in parts}
    assert after.config["tie_word_embeddings"] == tied
    tokens = torch.randint(0, 260, (1, 40))
    with torch.no_grad():
        original, other = (
            load_model(model, "float32")(tokens).logits,
            load_model(tmp_path / "out", "float32")(tokens).logits,
        )
    assert float((other - original).norm() / original.norm()) < 0.02, "bfloat16 weights, rounded again"


def test_nan_weights_are_refused_at_the_tensor(make: Make, tmp_path: Path) -> None:
    model = make(dtype=torch.float32)
    name = "model.layers.1.mlp.up_proj.weight"
    entry = Checkpoint.open(model).entry(name)
    with entry.file.open("r+b") as handle:
        handle.seek(entry.start + 40)
        handle.write(b"\x00\x00\xc0\x7f")
    with pytest.raises(InputError, match=rf"{entry.file}: tensor {name}: holds NaN"):
        rotate(model, tmp_path / "out", RotateSettings("hadamard", None))
    assert not (tmp_path / "out").exists()


def test_overflow_of_float16_is_refused(make: Make, tmp_path: Path) -> None:
    model = make(dtype=torch.float16)
    for name, value in (("model.norm.weight", 6e4), ("model.embed_tokens.weight", 3.0)):
        entry = Checkpoint.open(model).entry(name)
        with entry.file.open("r+b") as handle:
            handle.seek(entry.start)
            handle.write(torch.full(entry.shape, value, dtype=torch.float16).numpy().tobytes())
    with pytest.raises(InputError, match="convert the checkpoint to bfloat16"):
        rotate(model, tmp_path / "out", RotateSettings("hadamard", None))


def test_a_rotation_of_another_model_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the interrupted run was exchanged."""
    model = make()
    other = make("other", hidden_size=64)
    rotate(other, tmp_path / "other-out", RotateSettings("hadamard", None))

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_module, "gate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rotate(model, tmp_path / "out", RotateSettings("hadamard", None))
    monkeypatch.undo()
    (tmp_path / "other-out" / "rotation.safetensors").rename(tmp_path / ".out.partial" / "rotation.safetensors")
    with pytest.raises(MismatchError, match="it belongs to another"):
        rotate(model, tmp_path / "out", RotateSettings("hadamard", None))


def test_a_failed_gate_publishes_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfrot.rotation.fuse.hadamard_transform", lambda rows, spec: rows)  # R4 not fused
    with pytest.raises(GateError, match=r"model\.layers\.0: the rotated weights differ"):
        rotate(make(), tmp_path / "out", RotateSettings("hadamard", None))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
