"""`quantize_per_token`: one program per row; wide rows are read twice, the second time from cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfrot_kernels.ops.quantize import reference
from dfrot_kernels.triton.launch import EXACT, power2
from dfrot_kernels.triton.rows import not_finite, token_codes, token_scale

WIDEST = 16384  # values of a row that one program holds in registers


@triton.jit
def _quantize(
    x, codes, scales, zeros, k, clip, HALF: tl.constexpr, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    low = tl.full((), 0.0, tl.float32)
    high = tl.full((), 0.0, tl.float32)
    bad = tl.full((), 0, tl.int32)
    for begin in range(0, k, BLOCK):
        values = tl.load(x + row * k + begin + columns, mask=begin + columns < k, other=0.0).to(tl.float32)
        bad += tl.sum(not_finite(values))
        low = tl.minimum(low, tl.min(values))
        high = tl.maximum(high, tl.max(values))
    scale, zero, good = token_scale(low, high, bad, clip, HALF, SYMMETRIC)
    tl.store(scales + row, scale)
    tl.store(zeros + row, zero.to(tl.int32))
    for begin in range(0, k, BLOCK):
        held = begin + columns < k
        values = tl.load(x + row * k + begin + columns, mask=held, other=0.0).to(tl.float32)
        q = token_codes(values, scale, zero, good, HALF)
        tl.store(codes + row * k + begin + columns, q.to(tl.int8), mask=held)


def tokens(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where codes int8 [M, K], scale float32 [M] and zero int32 [M] of rows x go."""
    m = x.shape[0]
    return (
        torch.empty(x.shape, dtype=torch.int8, device=x.device),
        torch.empty(m, dtype=torch.float32, device=x.device),
        torch.empty(m, dtype=torch.int32, device=x.device),
    )


def quantize_per_token(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """`quantize_per_token` of reference.py."""
    if x.numel() == 0:
        return reference.quantize_per_token(x, bits, symmetric, clip)
    m, k = x.shape
    out = tokens(x)
    block = min(power2(k), WIDEST)
    warps = max(1, min(16, block // 512))
    half = 1 << (bits - 1)
    _quantize[(m,)](x.contiguous(), *out, k, clip, half, symmetric, block, num_warps=warps, **EXACT)
    return out
