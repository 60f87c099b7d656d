"""Mixtures of experts on disk: as their makers publish them and as transformers keeps them, read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.arch import describe, open_described
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.runtime.load import load_model

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "num_experts_per_tok": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {**SIZES, "num_local_experts": 4},
    "olmoe": {**SIZES, "num_experts": 4},
    "qwen3_moe": {**SIZES, "num_experts": 6, "moe_intermediate_size": 24, "norm_topk_prob": True},
}
PUBLISHED = {  # on the hub: mistralai/Mixtral-8x7B-v0.1, Qwen/Qwen3-30B-A3B, allenai/OLMoE-1B-7B-0924
    "mixtral": {
        "model.layers.1.block_sparse_moe.gate.weight": (4, 32),
        "model.layers.1.block_sparse_moe.experts.3.w1.weight": (48, 32),
        "model.layers.1.block_sparse_moe.experts.3.w2.weight": (32, 48),
        "model.layers.1.block_sparse_moe.experts.3.w3.weight": (48, 32),
    },
    "olmoe": {
        "model.layers.1.mlp.gate.weight": (4, 32),
        "model.layers.1.mlp.experts.3.down_proj.weight": (32, 48),
        "model.layers.0.self_attn.k_norm.weight": (16,),
    },
    "qwen3_moe": {
        "model.layers.1.mlp.gate.weight": (6, 32),
        "model.layers.1.mlp.experts.5.gate_proj.weight": (24, 32),
        "model.layers.1.mlp.experts.5.up_proj.weight": (24, 32),
        "model.layers.1.mlp.experts.5.down_proj.weight": (32, 24),
    },
}


def saved(folder: Path, model_type: str, **how: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **KINDS[model_type])).save_pretrained(
        folder, **how
    )
    return folder


@pytest.mark.parametrize("model_type", KINDS)
def test_both_layouts_read_alike(model_type: str, tmp_path: Path) -> None:
    published = saved(tmp_path / "published", model_type)
    merged = saved(tmp_path / "merged", model_type, save_original_format=False)
    stored = Checkpoint.open(published).entries
    assert {name: stored[name].shape for name in PUBLISHED[model_type]} == PUBLISHED[model_type]
    assert "model.layers.1.mlp.experts.gate_up_proj" in Checkpoint.open(merged).entries
    by_expert, arch = open_described(published)
    by_layer, _ = open_described(merged)
    assert set(by_expert.entries) == set(by_layer.entries) == set(arch.tensors())
    for name in by_expert.entries:
        assert torch.equal(by_expert.read(name), by_layer.read(name)), name
        assert torch.equal(by_expert.read_rows(name, 1, 3), by_layer.read_rows(name, 1, 3)), name
    assert by_layer.digest() == Checkpoint.open(merged).digest() != by_expert.digest(), "identity is that of the files"
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(load_model(published)(ids).logits, load_model(merged)(ids).logits)


def test_damaged_mixtures_are_refused(tmp_path: Path) -> None:
    merged = saved(tmp_path / "merged", "qwen3_moe", save_original_format=False)
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps({**config, "num_local_experts": 5}))
    with pytest.raises(InputError, match=r"experts\.\w+_proj: shape \[6, .*needs \[5, "):
        open_described(merged)
    published = saved(tmp_path / "published", "qwen3_moe")
    (published / "config.json").write_text(json.dumps({**config, "num_local_experts": 7}))
    with pytest.raises(InputError, match=r"mlp\.gate\.weight: shape \[6, 32\], .* needs \[7, 32\]"):
        open_described(published)


@pytest.mark.parametrize(
    ("model_type", "change", "reason"),
    [
        ("qwen3_moe", {"decoder_sparse_step": 2}, "one MLP and others a mixture"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "one MLP and others a mixture"),
        ("olmoe", {"clip_qkv": 8.0}, "clamped"),
    ],
)
def test_what_a_description_does_not_cover_is_refused(model_type: str, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{next(iter(change))} is .*{reason}"):
        describe({"model_type": model_type, **KINDS[model_type], **change})


def test_every_expert_is_its_own_tap() -> None:
    arch = describe({"model_type": "mixtral", **KINDS["mixtral"]})
    taps = {tap.name: [linear.name.rpartition(".")[2] for linear in tap.linears] for tap in arch.taps()}
    assert taps["self_attn.q_proj"] == ["q_proj", "k_proj", "v_proj"]
    assert taps["block_sparse_moe.experts.2.w1"] == ["w1", "w3"]
    assert taps["block_sparse_moe.experts.2.w2"] == ["w2"]
    assert len(taps) == 2 + 2 * 4
    assert not any("gate" in name for _, _, name in arch.linears()), "routers are never quantized"
