"""Plain-torch reference of every op: the ground truth of the tests and the fallback where no kernel exists.

Conventions (binding for every implementation): activations are rows [M, K], weights [N, K]. Weight codes are
unsigned, `w = scale * (u - zero)`; activation codes are signed int8, `x = scale * (q - zero)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [N, K] -> uint8 [N, ceil(K * bits / 8)], a dense little-endian bit string along K."""
    n, k = codes.shape
    width = (k * bits + 7) // 8
    if bits == 8:
        return codes.clone()
    if bits == 4:
        padded = torch.nn.functional.pad(codes, (0, k % 2))
        bytes_of = padded[:, 0::2] | (padded[:, 1::2] << 4)
        return bytes_of.flatten().view(n, width)  # a single row or column keeps the inputs' strides otherwise
    spread = (codes.unsqueeze(-1) >> torch.arange(bits, dtype=torch.uint8, device=codes.device)) & 1
    stream = torch.nn.functional.pad(spread.reshape(n, k * bits), (0, width * 8 - k * bits))
    weights = 2 ** torch.arange(8, dtype=torch.int32, device=codes.device)
    return (stream.reshape(n, width, 8).to(torch.int32) * weights).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, k: int) -> Tensor:
    """Inverse of `pack`: uint8 [N, ceil(K * bits / 8)] -> uint8 codes [N, K]."""
    n = packed.shape[0]
    if bits == 8:
        return packed.clone()
    if bits == 4:
        return torch.stack((packed & 15, packed >> 4), dim=-1).reshape(n, 2 * packed.shape[1])[:, :k].contiguous()
    stream = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    spread = stream.reshape(n, 8 * packed.shape[1])[:, : k * bits].reshape(n, k, bits).to(torch.int32)
    weights = 2 ** torch.arange(bits, dtype=torch.int32, device=packed.device)
    return (spread * weights).sum(-1).to(torch.uint8)


def _range(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor]:
    """Rows [M, K] float32 -> lower end of the range [M] (at most 0) and step [M]; NaN steps for NaN or Inf rows."""
    half = 1 << (bits - 1)
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0]), x.new_zeros(x.shape[0])
    low, high = x.amin(1).clamp(max=0) * clip, x.amax(1).clamp(min=0) * clip
    step = x.abs().amax(1) * clip / (half - 1) if symmetric else (high - low) / (2 * half - 1)
    return low, torch.where(step.isfinite(), step, torch.nan)


def _zero_point(low: Tensor, step: Tensor, top: int) -> Tensor:
    return torch.round((-low / step).clamp(max=top))


def quantize_per_token(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [M, K] -> int8 codes [M, K], scale float32 [M], zero int32 [M]; dynamic range per row, times `clip`.

    A row of zeros has scale 1. A row that holds NaN or Inf has scale NaN and codes 0, so that every product with it
    is NaN and no other row is touched.
    """
    x = x.float()
    half = 1 << (bits - 1)
    low, scale = _range(x, bits, symmetric, clip)
    bad = scale.isnan()
    scale = torch.where(scale == 0, 1.0, scale)
    zero = torch.zeros_like(scale) if symmetric else _zero_point(low, scale, 2 * half - 1) - half
    codes = (torch.round(x / scale[:, None]) + zero[:, None]).clamp(-half, half - 1)
    codes = torch.where(bad[:, None], 0.0, codes)
    return codes.to(torch.int8), scale, torch.where(bad, 0.0, zero).to(torch.int32)


def hadamard(x: Tensor, base: Tensor, block: int) -> Tensor:
    """x [..., n] times the block-diagonal (base (x) Sylvester) / sqrt(block), computed in float32 (or float64)."""
    work = x.double() if x.dtype == torch.float64 else x.float()
    order = base.shape[0]
    y = work.reshape(-1, order, block // order)
    size = block // order
    half = 1
    while half < size:
        y = y.reshape(-1, order, size // (2 * half), 2, half)
        y = torch.stack((y[:, :, :, 0] + y[:, :, :, 1], y[:, :, :, 0] - y[:, :, :, 1]), dim=3)
        half *= 2
    y = y.reshape(-1, order, size)
    if order > 1:
        y = torch.einsum("rks,kj->rjs", y, base.to(work))
    return (y / math.sqrt(block)).reshape(x.shape).to(x.dtype)


def _per_column(values: Tensor, k: int, group: int) -> Tensor:
    """[N, G] -> [N, K]: each group's value at each of its columns."""
    if group == 0:
        return values.expand(-1, k)
    return values.repeat_interleave(group, dim=1)[:, :k]


def signed_codes(packed: Tensor, zero: Tensor | None, bits: int, k: int, group: int) -> Tensor:
    """u - zero as int32 [N, K]."""
    codes = unpack(packed, bits, k).to(torch.int32)
    if zero is None:
        return codes - (1 << (bits - 1))
    return codes - _per_column(zero.to(torch.int32), k, group)


def dequantize(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, k: int, group: int) -> Tensor:
    """Packed weight -> float32 [N, K], exactly scale * (u - zero)."""
    return signed_codes(packed, zero, bits, k, group).float() * _per_column(scale.float(), k, group)


def w4a16_mm(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> Tensor:
    """x [..., K] times the 4-bit weight [N, K] transposed, float32 inside, x's dtype outside."""
    weight = dequantize(packed, scale, zero, 4, x.shape[-1], group)
    return (x.float() @ weight.T).to(x.dtype)


def w4a8_mm(
    q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
) -> Tensor:
    """int8 activations [M, K] times 4-bit weights: exact integer sums per group, float32 [M, N] result.

    y[m, n] = x_scale[m] * sum_g scale[n, g] * sum_{k in g} (q[m, k] - x_zero[m]) (u[n, k] - zero[n, g]).
    """
    k = q.shape[1]
    weight = signed_codes(packed, zero, 4, k, group).double()
    rows = q.double() - x_zero.double()[:, None]
    step = group or max(k, 1)
    out = torch.zeros(q.shape[0], packed.shape[0], dtype=torch.float32, device=q.device)
    for index, begin in enumerate(range(0, k, step)):
        # float64 sums of small integers are exact: a fast stand-in for an int32 matmul
        total = rows[:, begin : begin + step] @ weight[:, begin : begin + step].T
        out += total.float() * scale[:, index].float()[None, :]
    return out * x_scale[:, None]


def kv_quantize(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., D] -> packed uint8 [..., ceil(D * bits / 8)], scale float16 [...], zero uint8 [...]: one row, one scale.

    Codes are unsigned and derived from the stored (float16) scale; symmetric means zero = 2^(bits-1). Zeros, NaN and
    Inf as in `quantize_per_token`; a scale too large for float16 saturates.
    """
    lead, width = x.shape[:-1], x.shape[-1]
    rows = x.float().reshape(lead.numel(), width)
    half, top = 1 << (bits - 1), (1 << bits) - 1
    low, step = _range(rows, bits, symmetric, clip)
    bad = step.isnan()
    scale = step.clamp(max=torch.finfo(torch.float16).max).to(torch.float16)
    scale = torch.where(scale == 0, 1.0, scale)
    wide = scale.float()
    zero = torch.full_like(wide, half) if symmetric else _zero_point(low, wide, top)
    codes = (torch.round(rows / wide[:, None]) + zero[:, None]).clamp(0, top)
    codes = torch.where(bad[:, None], 0.0, codes).to(torch.uint8)
    zero = torch.where(bad, float(half), zero).to(torch.uint8)
    packed = pack(codes, bits)
    return packed.reshape(*lead, packed.shape[1]), scale.reshape(lead), zero.reshape(lead)


def kv_dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, width: int, bits: int, dtype: torch.dtype
) -> Tensor:
    """Inverse of `kv_quantize` up to rounding: [..., width] in `dtype`; zero None means symmetric."""
    lead = packed.shape[:-1]
    codes = unpack(packed.reshape(lead.numel(), packed.shape[-1]), bits, width).float().reshape(*lead, width)
    shift = float(1 << (bits - 1)) if zero is None else zero.float().unsqueeze(-1)
    return ((codes - shift) * scale.float().unsqueeze(-1)).to(dtype)
