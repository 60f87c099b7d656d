"""Plain-torch reference of the ops that write and read a packed cache.

The cache of one layer: codes uint8 [positions, batch, kv_heads, bytes], scale float16 and zero uint8 [positions,
batch, kv_heads] (zero None: symmetric), as `kv_quantize` makes them. Keys are stored rotated by R3: `base` and `block`
are its Hadamard transform, None where there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops.hadamard.reference import hadamard
from dfrot_kernels.ops.packing.reference import pack, unpack
from dfrot_kernels.ops.quantize.reference import row_range, zero_point


def kv_quantize(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., D] -> packed uint8 [..., ceil(D * bits / 8)], scale float16 [...], zero uint8 [...]: one row, one scale.

    Codes are unsigned and derived from the stored (float16) scale; symmetric means zero = 2^(bits-1). Zeros, NaN and
    Inf as in `quantize_per_token`; a scale too large for float16 saturates.
    """
    lead, width = x.shape[:-1], x.shape[-1]
    rows = x.float().reshape(lead.numel(), width)
    half, top = 1 << (bits - 1), (1 << bits) - 1
    low, step = row_range(rows, bits, symmetric, clip)
    bad = step.isnan()
    scale = step.clamp(max=torch.finfo(torch.float16).max).to(torch.float16)
    scale = torch.where(scale == 0, 1.0, scale)
    wide = scale.float()
    zero = torch.full_like(wide, half) if symmetric else zero_point(low, wide, top)
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


def rotated(x: Tensor, base: Tensor | None, block: int) -> Tensor:
    """float32 x, its rows [.., D] transformed by R3 (base None: as they are)."""
    return x.float() if base is None else hadamard(x.float(), base, block)


def shifted(x: Tensor, shift: Tensor | None) -> Tensor:
    """float32 x [B, S, H, D] minus `shift` [H, D] (None: as it is)."""
    return x if shift is None else x - shift


def kv_append(
    key: Tensor,
    value: Tensor,
    k_packed: Tensor,
    k_scale: Tensor,
    k_zero: Tensor | None,
    v_packed: Tensor,
    v_scale: Tensor,
    v_zero: Tensor | None,
    position: int,
    bits: int,
    clip: float,
    base: Tensor | None,
    block: int,
    shift: Tensor | None = None,
) -> None:
    """key, value [B, S, H, D] -> cache positions `position` .. `position + S`, in place: R3 on the keys (in float32),
    minus `shift` float32 [H, D] if there is one, one scale per row, packed. Buffers as in the module's docstring."""
    end = position + key.shape[1]
    keys = shifted(rotated(key, base, block), shift)
    for x, packed, scale, zero in ((keys, k_packed, k_scale, k_zero), (value, v_packed, v_scale, v_zero)):
        codes, step, zero_code = kv_quantize(x.transpose(0, 1), bits, zero is None, clip)
        packed[position:end] = codes
        scale[position:end] = step
        if zero is not None:
            zero[position:end] = zero_code
