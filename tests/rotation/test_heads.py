"""R2 per key/value head: fused exactly, refined from rows that the model makes, refused where it makes no sense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfrot.arch import open_described
from dfrot.errors import InputError, MismatchError
from dfrot.hf.blocks import BlockRunner
from dfrot.pipeline.rotate import RotateSettings, plan, rotate
from dfrot.rotation.fuse import Fuser, Rotations
from dfrot.rotation.hadamard import random_orthogonal
from dfrot.rotation.heads import Heads, refine_heads
from dfrot.rotation.refine import RefineSettings
from dfrot.rotation.rotation import load

Make = Callable[..., Path]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "phi3": {"tie_word_embeddings": False, "eos_token_id": 1, "pad_token_id": 0},  # q, k and v in one tensor
    "gemma2": {"method": "hadamard"},  # no R1
}


def fused(model: Path, r2: torch.Tensor) -> dict[str, torch.Tensor]:
    checkpoint, arch = open_described(model)
    fuser = Fuser(checkpoint, arch, Rotations(r2=r2))
    return {name: torch.cat([rows for _, rows in fuser.rows(name)]) for name in fuser.jobs}


def test_every_head_is_turned_by_its_own_matrix(make: Make) -> None:
    model = make(dtype=torch.float64)
    stored = load_file(model / "model.safetensors")
    stored |= {f"model.layers.{n}.self_attn.v_proj.bias": torch.arange(16.0, dtype=torch.float64) for n in range(3)}
    save_file(stored, model / "model.safetensors")
    checkpoint, arch = open_described(model)
    r2 = torch.stack([random_orthogonal(8, seed) for seed in range(3 * 2)])
    found = fused(model, r2)
    for layer in range(arch.n_layers):
        v = checkpoint.read(f"model.layers.{layer}.self_attn.v_proj.weight").reshape(2, 8, 32)
        o = checkpoint.read(f"model.layers.{layer}.self_attn.o_proj.weight").reshape(32, 2, 2, 8)
        own = r2[2 * layer : 2 * layer + 2]
        torch.testing.assert_close(
            found[f"model.layers.{layer}.self_attn.v_proj.weight"], (own.mT @ v).reshape(16, 32), atol=1e-13, rtol=0
        )
        bias = (torch.arange(16.0, dtype=torch.float64).reshape(2, 1, 8) @ own).flatten()
        torch.testing.assert_close(found[f"model.layers.{layer}.self_attn.v_proj.bias"], bias, atol=1e-13, rtol=0)
        turned = torch.stack([o[:, head] @ own[head] for head in range(2)], 1)
        torch.testing.assert_close(
            found[f"model.layers.{layer}.self_attn.o_proj.weight"], turned.reshape(32, 32), atol=1e-13, rtol=0
        )


def test_equal_matrices_of_heads_are_those_of_their_layer(make: Make) -> None:
    model = make()
    r2 = torch.stack([random_orthogonal(8, seed) for seed in range(3)])
    one, other = fused(model, r2), fused(model, r2.repeat_interleave(2, 0))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_heads_of_another_model_are_refused(make: Make) -> None:
    with pytest.raises(MismatchError, match=r"rotation R2: is \[5, 8, 8\], this model needs \[6, 8, 8\]"):
        fused(make(), torch.eye(8, dtype=torch.float64).repeat(5, 1, 1))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_refined_r2_leaves_the_function(make: Make, text: str, tmp_path: Path, kind: str) -> None:
    given = {"method": "dfrot", **KINDS[kind]}
    method = given.pop("method")
    model, out = make(dtype=torch.float32, model_type=kind, **given), tmp_path / "out"
    settings = RotateSettings(method, text, seqlen=64, rounds=6, r2="refined")
    planned = plan(model, settings)
    evidence = rotate(model, out, settings)
    assert planned["calibration_tokens"] == 64
    assert evidence["gate"]["logits"]["relative_error"] < 1e-3
    assert evidence["r2"]["error"] < evidence["r2"]["error_start"]
    r2 = load(out / "rotation.safetensors")["R2"]
    assert (r2.kind, list(r2.matrix.shape)) == ("refined", [6, 8, 8])
    assert evidence["r2"]["orthogonality_error"] == r2.orthogonality_error() < 1e-12


def test_rows_are_what_the_cache_and_o_proj_are_given(make: Make) -> None:
    checkpoint, arch = open_described(make(dtype=torch.float32, num_hidden_layers=1))
    runner, heads = BlockRunner(checkpoint, arch), Heads(arch)
    block = runner.block(0)
    heads.watch(block)
    seen: dict[str, torch.Tensor] = {}
    block.self_attn.v_proj.register_forward_hook(lambda module, args, out: seen.update(v=out[0]))
    block.self_attn.o_proj.register_forward_hook(lambda module, args, out: seen.update(o=args[0][0]))
    with torch.no_grad():
        runner.run(block, runner.embed(torch.arange(30)[None]), heads)
    rows = [heads.rows(head, 0) for head in range(2)]
    for head in range(2):
        values = seen["v"].reshape(30, 2, 8)[:, head]
        outputs = seen["o"].reshape(30, 4, 8)[:, 2 * head : 2 * head + 2].reshape(60, 8)
        wanted = torch.cat([values, outputs])
        wanted = wanted / wanted.square().mean(1, keepdim=True).sqrt()
        torch.testing.assert_close(rows[head].sort(0).values, wanted.sort(0).values, atol=1e-5, rtol=0)


def test_heads_that_say_nothing_keep_their_rotation(make: Make) -> None:
    checkpoint, arch = open_described(make(dtype=torch.float32, num_hidden_layers=1))
    runner = BlockRunner(checkpoint, arch)
    block_of = runner.block

    def silent(layer: int) -> Any:
        block = block_of(layer)
        torch.nn.init.zeros_(block.self_attn.v_proj.weight)
        return block

    runner.block = silent  # type: ignore[method-assign]
    starts = random_orthogonal(8, 0)[None]
    with torch.no_grad():
        found = refine_heads(runner, torch.arange(30)[None], starts, RefineSettings(rounds=3))
    assert torch.equal(found.matrices, starts.repeat(2, 1, 1))
    assert found.error == found.start == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r2": "learnt"}, "--r2 'learnt'"),
        ({"method": "none", "r2": "refined"}, "--method none rotates nothing"),
        ({"method": "hadamard", "dataset": None, "r2": "refined"}, "give a --dataset"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RotateSettings(**settings)
