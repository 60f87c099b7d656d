"""The rotary embedding of a GGUF file as entries of config.json.

Llama 3's scaling has no metadata: the file holds what each frequency is divided by, as the tensor `rope_freqs.weight`.
The factor is its maximum; low and high factor are those of Llama 3.1 to 3.3, the original length is theirs or another
power of two, and the tensor computed from them must be the file's, or the file is refused.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs.gguf.metadata import GGUFMetadata, shortest

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL_LENGTHS = (8192, *(1 << power for power in range(4, 21)))
TOLERANCE = 1e-4  # relative, of float32 divisors that others computed in another order
NO_SCALING = 1.0


def rope_config(metadata: GGUFMetadata, head_dim: int, context: int, divisors: Tensor | None) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of config.json. divisors: `rope_freqs.weight` float32 [head_dim / 2], if any.

    Raises UnsupportedError for a kind that transformers would compute differently."""
    dimensions = metadata.integer(".rope.dimension_count", head_dim)
    if dimensions != head_dim:
        raise UnsupportedError(
            f"{metadata.where}: rotates {dimensions} of {head_dim} dimensions of a head, which dfq cannot read"
        )
    theta = metadata.number(".rope.freq_base", 10000.0)
    if theta <= 0:
        raise metadata.error(metadata.full(".rope.freq_base"), "a positive number")
    config: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None}
    kind = metadata.text(".rope.scaling.type", "linear")
    factor = metadata.number(".rope.scaling.factor", metadata.number(".rope.scale_linear", NO_SCALING))
    metadata.flag(".rope.scaling.finetuned", True)
    metadata.require(".rope.scaling.yarn_log_multiplier", (0.0,), "YaRN with a multiplier of its own")
    metadata.require(".rope.scaling.alpha", (0.0, 1.0), "NTK-aware scaling")
    if factor <= 0:
        raise metadata.error(metadata.full(".rope.scaling.factor"), "a positive number")
    if divisors is not None:
        if factor != NO_SCALING and kind != "none":
            raise UnsupportedError(f"{metadata.where}: rope_freqs.weight beside another scaling of frequencies")
        _require_unused(metadata)
        config["rope_scaling"] = _llama3(metadata, theta, head_dim, divisors)
    elif kind == "yarn" and factor != NO_SCALING:
        config["rope_scaling"] = _yarn(metadata, factor, context)
    elif kind in ("none", "linear", "yarn"):
        _require_unused(metadata)
        if kind == "linear" and factor != NO_SCALING:
            config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    else:
        raise UnsupportedError(f"{metadata.where}: rope scaling {kind[:40]!r} cannot be read; linear and yarn can")
    return config


def _require_unused(metadata: GGUFMetadata) -> None:
    """Without YaRN its settings have no effect, unless they scale attention."""
    metadata.raw(".rope.scaling.original_context_length")
    for key in ("attn_factor", "yarn_attn_factor"):
        metadata.require(f".rope.scaling.{key}", (1.0,), "attention scaled by a factor of its own")
    for key in ("yarn_ext_factor", "yarn_beta_fast", "yarn_beta_slow"):
        metadata.raw(f".rope.scaling.{key}")


def _yarn(metadata: GGUFMetadata, factor: float, context: int) -> dict[str, Any]:
    """YaRN as transformers describes it. `yarn_attn_factor` is its `attention_factor`; `attn_factor` multiplies the one
    that follows from the scaling factor, in llama.cpp."""
    metadata.require(".rope.scaling.yarn_ext_factor", (1.0,), "YaRN with a weaker extrapolation")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": metadata.integer(".rope.scaling.original_context_length", context),
    }
    names = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"}
    for key, name in names.items():
        if metadata.raw(f".rope.scaling.{key}") is not None:
            scaling[name] = metadata.number(f".rope.scaling.{key}")
    multiplier = metadata.number(".rope.scaling.attn_factor", 1.0)
    if multiplier != 1.0:
        scaling["attention_factor"] = multiplier * scaling.get("attention_factor", 0.1 * math.log(factor) + 1.0)
    return scaling


def _llama3(metadata: GGUFMetadata, theta: float, head_dim: int, divisors: Tensor) -> dict[str, Any] | None:
    """`rope_scaling` of Llama 3 with these divisors; None where all are 1. Raises UnsupportedError for others."""
    if divisors.shape != (head_dim // 2,) or not bool((divisors > 0).all()):
        raise InputError(
            f"{metadata.where}: rope_freqs.weight is not {head_dim // 2} positive numbers", tensor="rope_freqs.weight"
        )
    if bool((divisors == 1).all()):
        return None
    factor = shortest(float(divisors.max()))
    for length in ORIGINAL_LENGTHS:
        scaling = {"rope_type": "llama3", "factor": factor, **LLAMA3, "original_max_position_embeddings": length}
        expected = llama3_divisors(scaling, theta, head_dim)
        if torch.allclose(divisors.double(), expected, rtol=TOLERANCE, atol=0.0):
            return scaling
    raise UnsupportedError(
        f"{metadata.where}: rope_freqs.weight is not what Llama 3's scaling by {factor:g} computes; "
        "dfq cannot describe it to transformers",
        tensor="rope_freqs.weight",
    )


def llama3_divisors(scaling: dict[str, Any], theta: float, head_dim: int) -> Tensor:
    """What Llama 3 divides each frequency by, float64 [head_dim / 2]: `factor` for those with fewer than
    `low_freq_factor` periods in the original context, 1 for those with more than `high_freq_factor`; between them the
    frequency is interpolated linearly in the number of periods."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    periods = scaling["original_max_position_embeddings"] * theta**-exponents / (2 * math.pi)
    smooth = ((periods - low) / (high - low)).clamp(0.0, 1.0)
    divided: Tensor = 1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)
    return divided
