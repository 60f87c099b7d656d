"""Sizes that published `config.json` files leave out, with the values that transformers takes for them.

A size that is `null` is not left out: heads of keys and values are then as many as query heads, and a head is as wide
as its share of the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXPERTS = ("num_experts", "num_local_experts")
"""The two names of the number of experts; transformers understands both for every mixture."""
_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_MISTRAL = {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8}
_QWEN2 = {**_LLAMA, "intermediate_size": 22016, "num_key_value_heads": 32, "vocab_size": 151_936}
_OLMO2 = {**_LLAMA, "vocab_size": 50304}
_GEMMA2 = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256_000,
}
_QWEN3_MOE = {"hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 24, "num_key_value_heads": 4}
_OLMOE = {"hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16}
_QWEN2_5_VL = {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64}
_OMITTED: dict[str, dict[str, int]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": {**_QWEN2, "head_dim": 128},
    "granite": _LLAMA,
    "phi3": {**_LLAMA, "hidden_size": 3072, "intermediate_size": 8192, "vocab_size": 32064},
    "mixtral": {**_MISTRAL, "num_local_experts": 8},
    "qwen3_moe": {**_QWEN2, **_QWEN3_MOE, "num_experts": 128},
    "olmoe": {**_OLMO2, **_OLMOE, "num_experts": 64},
    "olmo2": _OLMO2,
    "gemma2": _GEMMA2,
    "gemma3_text": {**_GEMMA2, "vocab_size": 262_208},
    # text_config of VLMs whose language model has a type of its own
    "qwen2_5_vl_text": {**_QWEN2, **_QWEN2_5_VL, "num_key_value_heads": 8, "vocab_size": 152_064},
    "qwen3_vl_text": {**_QWEN2, "head_dim": 128},
}


def with_omitted_sizes(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """A language model's `config.json` with the sizes that it leaves out. model_type: transformers' name of it."""
    omitted = _OMITTED.get(model_type, {})
    if any(key in config for key in EXPERTS):
        omitted = {key: value for key, value in omitted.items() if key not in EXPERTS}
    return {**omitted, **config}
