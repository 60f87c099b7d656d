"""Sizes of whole models for the bench, as configs of Hugging Face. Their weights are not needed."""

from __future__ import annotations

from typing import Any

from dfrot.errors import InputError

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
    "torch_dtype": "bfloat16",
}


def _llama(layers: int, hidden: int, mlp: int, heads: int, kv_heads: int, vocab: int, length: int) -> dict[str, Any]:
    """The config of a Llama with these sizes; length: positions of its context."""
    return {
        **_LLAMA,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": length,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _llama(2, 128, 256, 4, 2, 320, 2048),
    "160m": _llama(12, 768, 2048, 12, 12, 32000, 2048),
    "1.1b": _llama(22, 2048, 5632, 32, 4, 32000, 2048),
    "3b": _llama(28, 3072, 8192, 24, 8, 128256, 8192),
    "8b": _llama(32, 4096, 14336, 32, 8, 128256, 8192),
}


def preset(name: str) -> dict[str, Any]:
    """The config of shape `name`. Raises InputError that names the known ones."""
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        message = f"`shape={name}`: unknown; known: {known}, or give a checkpoint with `model`"
        raise InputError(message, field=("shape", "model"))
    return dict(PRESETS[name])
