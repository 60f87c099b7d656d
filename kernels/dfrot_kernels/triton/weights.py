"""Device functions on packed 4-bit weights (canonical layout: two codes a byte along K), and the sum over split K.

Products are computed as [outputs, tokens], weights first: unpacked weights are then the operand that tensor cores take
from registers, and a tile of few tokens wastes nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfrot_kernels.triton.launch import EXACT, ceil_div


@triton.jit
def load_codes(packed, rows, held, first, row_bytes, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """uint8 codes [BLOCK_N, BLOCK_K] of `rows`, from byte `first` on; 0 beyond the matrix."""
    columns = first + tl.arange(0, BLOCK_K // 2)
    mask = held[:, None] & (columns < row_bytes)[None, :]
    pairs = tl.load(packed + rows[:, None] * row_bytes + columns[None, :], mask=mask, other=0)
    return tl.reshape(tl.join(pairs & 15, pairs >> 4), (BLOCK_N, BLOCK_K))


@triton.jit
def to_float(codes, zero, KIND: tl.constexpr):
    """uint8 codes minus uint8 zero points (broadcast), exact in bfloat16 or float16.

    The codes become the low mantissa bits of 2^10 (in float16) or 2^23 (in float32): no integer is ever converted.
    """
    if KIND is tl.float16:
        wide = (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True)
        shift = (zero.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True)
    else:
        wide = (codes.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True)
        shift = (zero.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True)
    return (wide - shift).to(KIND)


@triton.jit
def low_part(x, high):
    """What bfloat16 `high` leaves of float32 `x`, as bfloat16 (0 where x is infinite)."""
    remainder = x - high.to(tl.float32)
    return tl.where(tl.abs(x) < float("inf"), remainder, 0.0).to(tl.bfloat16)


@triton.jit
def _gather(partial, out, scale, x_scale, size, n, PARTS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """out [M, N] = the sum of `partial` [PARTS, M, N] in order, times scale [N] (COLUMNS) and x_scale [M] (ROWS)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    held = at < size
    total = tl.load(partial + at, mask=held, other=0)
    for part in range(1, PARTS):
        total += tl.load(partial + part * size + at, mask=held, other=0)
    total = total.to(tl.float32)
    if COLUMNS:
        total *= tl.load(scale + at % n, mask=held, other=0.0).to(tl.float32)
    if ROWS:
        total *= tl.load(x_scale + at // n, mask=held, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=held)


def gather(partial: Tensor, out: Tensor, scale: Tensor | None = None, x_scale: Tensor | None = None) -> None:
    """Sum the parts of a product whose K was split: always in the same order, so that every run gives the same bits."""
    size, block = out.numel(), 1024
    flags = (partial.shape[0], scale is not None, x_scale is not None)
    _gather[(ceil_div(size, block),)](partial, out, scale, x_scale, size, out.shape[-1], *flags, block, **EXACT)


def parts(count: int, out: Tensor, dtype: torch.dtype) -> Tensor:
    """Where `count` splits write their share of `out` [M, N]."""
    return torch.empty((count, *out.shape), dtype=dtype, device=out.device)
