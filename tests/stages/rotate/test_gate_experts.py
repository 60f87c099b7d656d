"""Mixtures of experts under `dfq rotate`: routers turn with the residual, the gate knows what a near tie is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.arch import open_described
from dfrot.checkpoint import Checkpoint
from dfrot.errors import GateError
from dfrot.rotation.rotation import Rotation
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.load import load_model
from dfrot.stages.rotate.gate import gate
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

Make = Callable[..., Path]
MOE = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
}
TOKENS = torch.randint(0, 260, (1, 96), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", MOE)
@pytest.mark.parametrize("online", [True, False])
def test_rotated_mixture_is_the_same_model(make: Make, text: str, tmp_path: Path, kind: str, online: bool) -> None:
    model = make(dtype=torch.float32, **MOE[kind])
    settings = RotateSettings("dfrot", text, seqlen=64, rounds=3, online=online)
    evidence = rotate(model, tmp_path / "out", settings)
    router = "block_sparse_moe.gate" if kind == "mixtral" else "mlp.gate"
    assert f"model.layers.2.{router}" in evidence["gate"]["parts"]
    assert evidence["online"].get("r4", {}).get("size") == ({"mixtral": 48, "qwen3_moe": 24}[kind] if online else None)
    with torch.no_grad():
        before, after = load_model(model)(TOKENS).logits, load_model(tmp_path / "out")(TOKENS).logits
    assert float((after - before).norm() / before.norm()) < 1e-4
    assert ("quantization_config" in Checkpoint.open(tmp_path / "out").config) == online


@pytest.mark.parametrize("seed", range(3))
def test_rounding_that_sends_tokens_elsewhere_passes(make: Make, tmp_path: Path, seed: int) -> None:
    model, out = make(seed=seed, **MOE["qwen3_moe"]), tmp_path / "out"
    parts = rotate(model, out, RotateSettings("hadamard", None))["gate"]["parts"]
    assert all(part["error"] < 0.6 * part["limit"] for part in parts.values())
    assert sum(part.get("rerouted", 0) for part in parts.values()) > 0, "bfloat16 decides some ties another way"


def test_a_wrong_router_and_a_wrong_expert_are_found(make: Make, tmp_path: Path) -> None:
    model, out = make(dtype=torch.float32, **MOE["mixtral"]), tmp_path / "out"
    rotate(model, out, RotateSettings("hadamard", None, gate=False))
    r1 = Rotation.load(out / "rotation.safetensors").matrix
    for name, where in (("gate", r"layers\.1\.block_sparse_moe\.gate:"), ("experts.1.w3", r"model\.layers\.1:")):
        checkpoint = Checkpoint.open(out)
        entry = checkpoint.entry(f"model.layers.1.block_sparse_moe.{name}.weight")
        kept = entry.file.read_bytes()
        with entry.file.open("r+b") as handle:
            handle.seek(entry.start)
            handle.write((-checkpoint.read(entry.name)).numpy().tobytes())
        with pytest.raises(GateError, match=where):
            gate(BlockRunner(*open_described(model)), BlockRunner(*open_described(out)), TOKENS, r1)
        entry.file.write_bytes(kept)
