"""Shapes of whole models for the bench, as `config.json` says them. None of their weights are needed."""

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


def _shape(layers: int, hidden: int, mlp: int, heads: int, kv_heads: int, vocab: int, length: int) -> dict[str, Any]:
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
    "tiny": _shape(2, 128, 256, 4, 2, 320, 2048),
    "160m": _shape(12, 768, 2048, 12, 12, 32000, 2048),
    "1.1b": _shape(22, 2048, 5632, 32, 4, 32000, 2048),
    "3b": _shape(28, 3072, 8192, 24, 8, 128256, 8192),
    "8b": _shape(32, 4096, 14336, 32, 8, 128256, 8192),
}


def preset(name: str) -> dict[str, Any]:
    """The config of shape `name`."""
    if name not in PRESETS:
        raise InputError(f"--shape {name}: unknown; known: {', '.join(PRESETS)}, or give a checkpoint with --model")
    return dict(PRESETS[name])
