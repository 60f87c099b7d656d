"""Plain-torch reference of dynamic quantization: one scale and zero point per row."""

from __future__ import annotations

import torch
from torch import Tensor


def row_range(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor]:
    """Rows [M, K] float32 -> lower end of the range [M] (at most 0) and step [M]; NaN steps for NaN or Inf rows."""
    half = 1 << (bits - 1)
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0]), x.new_zeros(x.shape[0])
    low, high = x.amin(1).clamp(max=0) * clip, x.amax(1).clamp(min=0) * clip
    step = x.abs().amax(1) * clip / (half - 1) if symmetric else (high - low) / (2 * half - 1)
    return low, torch.where(step.isfinite(), step, torch.nan)


def zero_point(low: Tensor, step: Tensor, top: int) -> Tensor:
    """Lower ends [M] and steps [M] of rows -> zero points [M] as floats, at most `top`."""
    return torch.round((-low / step).clamp(max=top))


def quantize_per_token(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [M, K] -> int8 codes [M, K], scale float32 [M], zero int32 [M]; dynamic range per row, times `clip`.

    A row of zeros has scale 1. A row that holds NaN or Inf has scale NaN and codes 0, so that every product with it
    is NaN and no other row is touched.
    """
    x = x.float()
    half = 1 << (bits - 1)
    low, scale = row_range(x, bits, symmetric, clip)
    bad = scale.isnan()
    scale = torch.where(scale == 0, 1.0, scale)
    zero = torch.zeros_like(scale) if symmetric else zero_point(low, scale, 2 * half - 1) - half
    codes = (torch.round(x / scale[:, None]) + zero[:, None]).clamp(-half, half - 1)
    codes = torch.where(bad[:, None], 0.0, codes)
    return codes.to(torch.int8), scale, torch.where(bad, 0.0, zero).to(torch.int32)
