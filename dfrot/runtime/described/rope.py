"""Rotary position embeddings (RoPE, arXiv 2104.09864) whose angles depend on the position alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Type -> the parameters that it needs beside the base."""


def inverse_frequencies(parameters: Mapping[str, Any], head_dim: int) -> Tensor:
    """Radians per position of each pair of values, float32 [head_dim / 2]. parameters: of a type in ROPE_TYPES."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
    powers: Tensor = parameters["rope_theta"] ** exponents
    frequencies = 1.0 / powers
    if parameters["rope_type"] == "linear":
        stretched: Tensor = frequencies / parameters["factor"]
        return stretched
    if parameters["rope_type"] == "llama3":
        return _llama3(frequencies, parameters)
    return frequencies


def _llama3(frequencies: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Frequencies of Llama 3.1: long wavelengths are stretched by `factor`, short ones stay, those between are mixed in
    the proportion of how often they turn within the original context."""
    factor, context = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    wavelength = 2 * math.pi / frequencies
    is_long, is_short = wavelength > context / low, wavelength < context / high
    stretched = torch.where(is_long, frequencies / factor, frequencies)
    share = (context / wavelength - low) / (high - low)
    mixed = (1 - share) * stretched / factor + share * stretched
    blended: Tensor = torch.where(is_long | is_short, stretched, mixed)
    return blended


class RotaryEmbedding(nn.Module):
    """The angles of positions. rope_type: as config.json names it."""

    inv_freq: Tensor

    def __init__(self, parameters: Mapping[str, Any], head_dim: int) -> None:
        super().__init__()
        self.rope_type = str(parameters["rope_type"])
        self.register_buffer("inv_freq", inverse_frequencies(parameters, head_dim), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, S, head_dim] of positions int64 [B, S], in the dtype of x; both halves are equal."""
        angles = positions[..., None].float() * self.inv_freq.float()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, S, D] turned by the angles [B, S, D]: value i of the first half with value i of the second."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos[:, None]) + (torch.cat((-second, first), dim=-1) * sin[:, None])
