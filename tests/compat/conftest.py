"""Tiny transformers models. Nothing here is dfq's: these tests say what dfq assumes of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXTRA: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


def make_model(model_type: str = "llama", **changes: Any) -> Any:
    """A random causal language model of one of the described types."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **EXTRA.get(model_type, {}), **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def build_model() -> Any:
    """build_model(model_type="llama", **config) -> a random model."""
    return make_model


@pytest.fixture
def ids() -> torch.Tensor:
    """Two sequences of ten tokens, none of which is the padding token 0."""
    return torch.randint(1, SIZES["vocab_size"], (2, 10), generator=torch.Generator().manual_seed(1))
