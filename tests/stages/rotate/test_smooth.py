"""`dfq rotate --method smooth`: no rotation, channels of norms and of the gated product scaled, the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfrot.arch import open_described
from dfrot.checkpoint import Checkpoint
from dfrot.quant.config import DfqConfig
from dfrot.rotation.rotation import ROTATION_FILE
from dfrot.rotation.transforms import TRANSFORMS_FILE, Transforms
from dfrot.stages.rotate.run import plan, rotate
from dfrot.stages.rotate.settings import RotateSettings

Make = Callable[..., Path]
Logits = Callable[[Path], torch.Tensor]
KINDS = {
    "phi3": {"pad_token_id": 0},
    "gemma2": {"head_dim": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def settings(text: str, *names: str) -> RotateSettings:
    return RotateSettings("smooth", text, seqlen=48, transform=names or ("auto",), transform_windows=2)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "gemma2", "olmo2", "qwen3_moe"])
def test_it_keeps_the_model(make: Make, text: str, tmp_path: Path, logits: Logits, model_type: str) -> None:
    model = make(dtype=torch.float32, model_type=model_type, **KINDS.get(model_type, {}))
    out = tmp_path / "out"
    record = rotate(model, out, settings(text))
    assert torch.allclose(logits(out), logits(model), rtol=1e-3, atol=1e-4)
    source, result = Checkpoint.open(model), Checkpoint.open(out)
    assert set(result.entries) == set(source.entries)  # a tied head stays tied
    arch = open_described(model)[1]
    changed = {name for name in source.entries if not torch.equal(source.read(name), result.read(name))}
    fed = {arch.full(0, name) for norm in arch.spec.rotated_norms for name in (norm.name, *norm.feeds)}
    assert {f"{name}.weight" for name in fed} <= changed
    assert not any(name.startswith((arch.spec.embed, arch.spec.final_norm.name)) for name in changed)
    assert not (out / ROTATION_FILE).exists()
    assert DfqConfig.of(result.config, "config.json") is None
    assert {name: report["mode"] for name, report in record["transforms"].items()} == {
        "norm-scale": "groups",
        "up-down": "groups",
    }
    assert record["gate"]["logits"]["relative_error"] < 1e-3


def test_channels_become_more_alike(make: Make, text: str, tmp_path: Path, logits: Logits) -> None:
    """A gain that is far larger than the others makes an outlier channel, which the new gain takes back in part."""
    model = make(dtype=torch.float32)
    file = next(model.glob("*.safetensors"))
    tensors = load_file(file)
    name = "model.layers.0.input_layernorm.weight"
    tensors[name][3] = 50.0
    tensors[name][5] = 0.0
    save_file(tensors, file, {"format": "pt"})
    before = logits(model)
    rotate(model, tmp_path / "out", settings(text))
    assert torch.allclose(logits(tmp_path / "out"), before, rtol=1e-3, atol=1e-4)
    gains = Checkpoint.open(tmp_path / "out").read(name)
    assert float(gains[3]) < 0.6 * 50
    assert float(gains[5]) != 0
    stored = Transforms.load(tmp_path / "out" / TRANSFORMS_FILE)
    assert stored.norm is not None
    assert stored.up is not None


def test_the_plan_names_what_is_done(make: Make, text: str) -> None:
    summary = plan(make(), settings(text))
    assert summary["transforms"] == ["norm-scale:groups", "up-down:groups"]
    assert summary["r1"] is None
    assert summary["online"] == {}
