"""Simulated ("fake") quantization of activations and of the KV cache: quantize and dequantize in one step.

The arithmetic is that of the integer path (`torch.ops.dfq.quantize_per_token`, `kv_quantize`), so that a
simulated model computes the numbers of the packed one: float32 inside, half-to-even rounding, zero
included in every asymmetric range, a scale of 1 for rows that are all zero. No gradient passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dfrot.quant.scheme import FULL, QuantScheme


def _ranges(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor | None]:
    """Scale and (asymmetric only) lowest value per row of float32 x [..., K], both [..., 1]."""
    if symmetric:
        return x.abs().amax(-1, keepdim=True).mul_(clip).div_(2 ** (bits - 1) - 1), None
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    low = low.clamp(max=0.0).mul_(clip)
    high = high.clamp(min=0.0).mul_(clip)
    return (high - low).div_(2**bits - 1), low


def _round_trip(x: Tensor, scale: Tensor, low: Tensor | None, bits: int) -> Tensor:
    """Quantize x [..., K] with `scale` [..., 1] and dequantize it again, in float32. low: as `_ranges` returns it."""
    half = 2 ** (bits - 1)
    codes = torch.round(x / scale)
    if low is None:
        return codes.clamp_(-half, half - 1).mul_(scale)
    zero = torch.round(-low / scale).sub_(half)
    return codes.add_(zero).clamp_(-half, half - 1).sub_(zero).mul_(scale)


class TokenCodes(NamedTuple):
    """Activations [M, K] as integers: `scale (codes - zero)`."""

    codes: Tensor
    """int8 [M, K]."""
    scale: Tensor
    """float32 [M]."""
    zero: Tensor
    """int32 [M]."""

    @classmethod
    def of(cls, x: Tensor, bits: int, symmetric: bool, clip: float) -> TokenCodes:
        """Quantize x [..., K] per token, as `fake_quantize` says; bits: 2..8."""
        return cls(*torch.ops.dfq.quantize_per_token(x.unsqueeze(0).flatten(0, -2), bits, symmetric, clip))

    def dequantize(self) -> Tensor:
        """float32 [M, K]."""
        return self.codes.float().sub_(self.zero[:, None]).mul_(self.scale[:, None])


def fake_quantize(x: Tensor, bits: int, symmetric: bool, clip: float = 1.0) -> Tensor:
    """Dynamic per-token quantization of x [..., K] over the last dimension, dequantized again.

    bits: 2..8 (16 returns x). symmetric: codes around 0, scale = clip max|x| / (2^(b-1) - 1); asymmetric: scale =
    clip (max - min) / (2^b - 1) with 0 inside the range, as in QuaRot and DFRot. Result in x's dtype.
    """
    if bits == FULL:
        return x
    return TokenCodes.of(x, bits, symmetric, clip).dequantize().view(x.shape).to(x.dtype)


def fake_quantize_kv(x: Tensor, bits: int, symmetric: bool, clip: float = 1.0) -> Tensor:
    """Quantization of keys or values x [..., head_dim], one scale per token and head, dequantized again.

    As `fake_quantize`, but the scale is the one the packed cache stores (float16) and codes derive from it.
    """
    if bits == FULL:
        return x
    rows = x.float()
    scale, low = _ranges(rows, bits, symmetric, clip)
    scale = scale.half().float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return _round_trip(rows, scale, low, bits).to(x.dtype)


def activation_quantizer(scheme: QuantScheme, clip: float | None = None) -> Callable[[Tensor], Tensor]:
    """The simulated activation quantizer of a scheme; `clip` overrides the scheme's own ratio."""
    ratio = scheme.a_clip if clip is None else clip

    def quantize(x: Tensor) -> Tensor:
        return fake_quantize(x, scheme.a_bits, scheme.a_sym, ratio)

    return quantize
