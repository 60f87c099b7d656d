"""A model's sizes and its rotary embedding as metadata of a GGUF file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dfrot.arch import BoundArch
from dfrot.arch.rope import rope_parameters
from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs.gguf.package import gguf_package


def write_sizes(writer: Any, arch: BoundArch, where: Path) -> None:
    """Add sizes, norms, scalars and context length to a `gguf.GGUFWriter`. where: the config.json, for messages.

    Raises UnsupportedError for activations other than silu."""
    config = arch.config
    writer.add_block_count(arch.n_layers)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(arch.hidden)
    writer.add_feed_forward_length(arch.intermediate)
    writer.add_head_count(arch.n_heads)
    writer.add_head_count_kv(arch.n_kv_heads)
    writer.add_key_length(arch.head_dim)
    writer.add_value_length(arch.head_dim)
    writer.add_vocab_size(arch.sizes["vocab"])
    writer.add_layer_norm_rms_eps(_number(config, "rms_norm_eps", 1e-6, where))
    writer.add_rope_dimension_count(arch.head_dim)
    for role in ("embedding", "residual", "attention", "logit"):
        key = {"embedding": "embed", "logit": "logits"}.get(role, role)
        if getattr(arch.spec.scalars, key):
            getattr(writer, f"add_{role}_scale")(arch.scalar(key))
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedError(f"{where}: hidden_act {config['hidden_act']!r}: llama.cpp computes silu in this model")


def _context(config: dict[str, Any]) -> int:
    """Positions up to which llama.cpp computes what the source computes. Its graphs have no sliding window, so a model
    with one is exact up to the window's width."""
    length = int(config.get("max_position_embeddings") or 2048)
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True):
        length = min(length, int(window))
    return length


def _number(values: dict[str, Any], key: str, default: float | None, where: Path) -> float:
    """A finite number of a config. Raises InputError for anything else."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: {key} is {value!r}, a number is needed")
    return float(value)


def write_rope(writer: Any, arch: BoundArch, where: Path) -> np.ndarray[Any, Any] | None:
    """Add the rotary embedding. Returns the factors of the tensor `rope_freqs.weight` float32 [head_dim / 2] where each
    frequency has its own, else None. Raises UnsupportedError for a kind that GGUF cannot describe."""
    config = arch.config
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key), dict | None):
            raise InputError(f"{where}: {key} is {config[key]!r}, an object is needed")
    parameters = rope_parameters(config)
    theta = _number(parameters, "rope_theta", None, where)
    writer.add_rope_freq_base(theta)
    if float(config.get("partial_rotary_factor") or parameters.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedError(f"{where}: partial rotary embedding: this architecture has none in llama.cpp")
    kind = parameters["rope_type"]
    if kind == "default":
        return None
    if kind == "linear":
        writer.add_rope_scaling_type(gguf_package().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(_number(parameters, "factor", None, where))
        return None
    if kind == "llama3":
        return _llama3(parameters, theta, arch, where)
    raise UnsupportedError(f"{where}: rope type {kind!r} is not exported; default, linear and llama3 are")


def _llama3(parameters: dict[str, Any], theta: float, arch: BoundArch, where: Path) -> np.ndarray[Any, Any]:
    """What Llama 3.1 divides each frequency by, float32 [head_dim / 2]: `factor` below the low frequency bound, 1 above
    the high one; between them frequencies are interpolated linearly in original_length / wavelength."""
    factor, low, high, length = (
        _number(parameters, key, None, where)
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    pairs = np.arange(0, arch.head_dim, 2, dtype=np.float64) / arch.head_dim
    periods = length * theta**-pairs / (2 * math.pi)  # within the original context
    smooth = np.clip((periods - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
