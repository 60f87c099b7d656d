"""Block by block gives what the whole model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.arch import describe, open_described
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.load import load_model

WINDOWS = ("sliding", "full", "sliding")
ROPE = {
    "full": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
    "sliding": {"rope_type": "default", "rope_theta": 10.0},
}
TOKENS = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))
CONFIG: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}

GEMMA = {"query_pre_attn_scalar": 6, "sliding_window": 4, "layer_types": [f"{k}_attention" for k in WINDOWS]}


def save(folder: Path, config: dict[str, Any], bias: tuple[str, ...] = ()) -> Path:
    arch = describe(config)
    shapes = {**arch.tensors(), **arch.biases()}
    shapes.update({f"{n}.bias": (arch.sizes[s.rows],) for _, s, n in arch.linears() if s.name in bias})
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    writer = SafetensorsWriter(folder, [TensorPlan(n, torch.float32, s) for n, s in shapes.items()])
    for name, shape in shapes.items():
        writer.write(name, torch.randn(shape, generator=generator) * (0.2 if len(shape) == 2 else 0.5))
    return folder


def full_model_logits(folder: Path) -> Tensor:
    """transformers' own model, attention and experts as it chooses."""
    with torch.no_grad():
        return load_model(folder)(TOKENS).logits  # type: ignore[no-any-return]


def by_blocks(folder: Path) -> Tensor:
    runner = BlockRunner(*open_described(folder))
    hidden = runner.embed(TOKENS)
    for layer in range(runner.arch.n_layers):
        hidden = runner.run(runner.block(layer), hidden)
    return runner.logits(hidden, rows=7)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llama"},
        {"model_type": "llama", "rope_theta": 500.0, "rms_norm_eps": 1e-3, "tie_word_embeddings": True},
        {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 5},
        {"model_type": "qwen2"},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        {"model_type": "granite", "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
        | {"attention_multiplier": 0.2, "logits_scaling": 8.0},
        {"model_type": "qwen3"},
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
        {"model_type": "qwen3_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
        {"model_type": "olmo2"},
        {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.5},
        {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None},
        {"model_type": "gemma3_text", **GEMMA, "tie_word_embeddings": True}
        | {"rope_parameters": {f"{model_type}_attention": ROPE[model_type] for model_type in ROPE}},
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"sliding_window": 3, "use_sliding_window": True},
    ],
)
def test_blocks_give_the_models_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    bias = tuple(f"self_attn.{n}_proj" for n in "qkv") if changes["model_type"] == "qwen2" else ()
    folder = save(tmp_path / "model", {**CONFIG, **changes}, bias)
    assert torch.allclose(by_blocks(folder), full_model_logits(folder), rtol=1e-5, atol=1e-5)


def test_a_window_matters(tmp_path: Path) -> None:
    """The sliding cases above would prove nothing if the window changed nothing."""
    config = {**CONFIG, "model_type": "mistral"}
    full = save(tmp_path / "full", {**config, "sliding_window": None})
    narrow = save(tmp_path / "narrow", {**config, "sliding_window": 5})
    assert not torch.allclose(by_blocks(full), by_blocks(narrow), rtol=1e-3, atol=1e-3)


def test_token_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    runner = BlockRunner(*open_described(save(tmp_path / "model", {**CONFIG, "model_type": "llama"})))
    with pytest.raises(InputError, match=r"token id 40 is outside the vocabulary \(40\)"):
        runner.embed(torch.tensor([[3, 40]]))


def test_a_config_that_transformers_refuses_is_an_input_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", {**CONFIG, "model_type": "llama", "hidden_act": 3})
    with pytest.raises(InputError, match=r"config\.json: refused by transformers"):
        BlockRunner(*open_described(folder))


def test_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    ours = DfqConfig(scheme=QuantScheme()).to_dict()
    folder = save(tmp_path / "ours", {**CONFIG, "model_type": "llama", "quantization_config": ours})
    with pytest.raises(UnsupportedError, match="quantized already"):
        BlockRunner(*open_described(folder))
    folder = save(tmp_path / "other", {**CONFIG, "model_type": "llama", "quantization_config": {"quant_method": "x"}})
    with pytest.raises(UnsupportedError, match="already quantized with 'x'"):
        BlockRunner(*open_described(folder))
