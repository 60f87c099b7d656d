"""`kv_quantize`, `kv_append`, `kv_dequantize`: rows of keys and values to packed codes and back.

One kernel writes rows, to where they stand (kv_quantize) or into the cache (kv_append); R3 of a usual head is done on
the way, that of an unusual one before.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfrot_kernels.ops.hadamard.triton import multiply, sylvester, transformed
from dfrot_kernels.ops.kv_cache import reference
from dfrot_kernels.triton.launch import EXACT, ceil_div, power2
from dfrot_kernels.triton.rows import HALF_MAX, INF, not_finite, rint, steps, zero_point

WIDEST_R3 = 128  # blocks of R3 up to which a program holds their matrix


@triton.jit
def load_bits(packed, rows, columns, mask, row_bytes, BITS: tl.constexpr):
    """Codes int32 at `columns` of packed rows that begin at byte `rows`, a little-endian bit string each."""
    bit = columns * BITS
    byte = bit // 8
    code = tl.load(packed + rows + byte, mask=mask, other=0).to(tl.int32)
    if 8 % BITS != 0:
        next_byte = tl.load(packed + rows + byte + 1, mask=mask & (byte + 1 < row_bytes), other=0).to(tl.int32)
        code |= next_byte << 8
    return (code >> (bit % 8)) & ((1 << BITS) - 1)


@triton.jit
def _codes(values, scale, zero, good, TOP: tl.constexpr):
    """float32 values of rows -> int32 codes 0..TOP; 0 in bad rows."""
    q = rint(tl.div_rn(values, scale[:, None] + tl.zeros_like(values))) + zero[:, None]
    return tl.where(good[:, None], tl.minimum(tl.maximum(q, 0.0), TOP), 0.0).to(tl.int32)


@triton.jit
def _write(
    x, shift, packed, scales, zeros, size, dim, row_bytes, seq, heads, batch, position, clip, root,
    BITS: tl.constexpr, SYMMETRIC: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_SHIFT: tl.constexpr, R3: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Row ((b * seq) + s) * heads + h of x goes to row ((position + s) * batch + b) * heads + h of the store.
    shift [heads, dim] is subtracted from it."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    TOP: tl.constexpr = 2 * HALF - 1
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    held = row < size
    to = ((position + row // heads % seq) * batch + row // heads // seq) * heads + row % heads
    columns = tl.arange(0, DIM)
    inside = held[:, None] & (columns < dim)[None, :]
    y = tl.load(x + row[:, None] * dim + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if R3 > 0:
        y = tl.reshape(multiply(tl.reshape(y, (ROWS * DIM // R3, R3)), sylvester(R3)), (ROWS, DIM))
        y = tl.div_rn(y, root + tl.zeros_like(y))
    if HAS_SHIFT:
        y -= tl.load(shift + (row % heads)[:, None] * dim + columns[None, :], mask=inside, other=0.0)
    low, high = tl.minimum(tl.min(y, 1), 0.0) * clip, tl.maximum(tl.max(y, 1), 0.0) * clip
    step = steps(low, high, HALF, SYMMETRIC)
    good = (tl.sum(not_finite(y), 1) == 0) & (step < INF)
    stored = tl.minimum(step, HALF_MAX).to(tl.float16)
    stored = tl.where(stored == 0.0, 1.0, stored.to(tl.float32))
    zero = tl.zeros_like(stored) + HALF
    if not SYMMETRIC:
        zero = tl.where(good, zero_point(low, stored, TOP), zero)
    tl.store(scales + to, tl.where(good, stored, float("nan")).to(tl.float16), mask=held)
    if HAS_ZERO:
        tl.store(zeros + to, zero.to(tl.uint8), mask=held)
    if BITS == 4:
        codes = tl.where(inside, _codes(y, stored, zero, good, TOP), 0)
        even, odd = tl.split(tl.reshape(codes, (ROWS, DIM // 2, 2)))
        byte = tl.arange(0, DIM // 2)
        out = even | (odd << 4)
    elif BITS == 8:
        byte = columns
        out = _codes(y, stored, zero, good, TOP)
    else:  # byte i holds bits 8 i .. 8 i + 7 of the string; the codes that reach into it are quantized again
        byte = tl.arange(0, BYTES)
        out = tl.zeros((ROWS, BYTES), tl.int32)
        for i in tl.static_range(7 // BITS + 2):
            column = byte * 8 // BITS + i
            inside_row = held[:, None] & (column < dim)[None, :]
            values = tl.load(x + row[:, None] * dim + column[None, :], mask=inside_row, other=0.0).to(tl.float32)
            if HAS_SHIFT:
                values -= tl.load(shift + (row % heads)[:, None] * dim + column[None, :], mask=inside_row, other=0.0)
            code = tl.where(inside_row, _codes(values, stored, zero, good, TOP), 0)
            offset = (column * BITS - byte * 8)[None, :]  # -BITS < offset; 8 and more: the code lies beyond the byte
            out |= (code << tl.minimum(tl.maximum(offset, 0), 8)) >> tl.maximum(-offset, 0)
    at = to[:, None] * row_bytes + byte[None, :]
    tl.store(packed + at, (out & 255).to(tl.uint8), mask=held[:, None] & (byte < row_bytes)[None, :])


def _store(
    x: Tensor, out: tuple[Tensor, Tensor, Tensor | None], bits: int, symmetric: bool, clip: float, r3: int,
    shape: tuple[int, int, int], position: int, shift: Tensor | None = None,
) -> None:  # fmt: skip
    """Rows of x (contiguous, shape = batch, seq, heads) into the store `out` = packed, scale, zero. shift: float32
    [heads, dim], subtracted behind R3, or None."""
    packed, scale, zero = out
    dim, row_bytes = x.shape[-1], packed.shape[-1]
    size, width = x.numel() // dim, max(16, power2(dim))
    rows = min(max(1, 4096 // width), max(16 if r3 else 1, power2(size)))
    batch, seq, heads = shape
    sizes = (size, dim, row_bytes, seq, heads, batch, position, clip, math.sqrt(r3 or 1))
    flags = (bits, symmetric, zero is not None, shift is not None, r3, rows, width, power2(row_bytes))
    shift = None if shift is None else shift.contiguous()
    _write[(ceil_div(size, rows),)](x, shift, packed, scale, zero, *sizes, *flags, **EXACT)


def kv_quantize(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """`kv_quantize` of reference.py."""
    if x.numel() == 0:
        return reference.kv_quantize(x, bits, symmetric, clip)
    lead, dim = x.shape[:-1], x.shape[-1]
    packed = torch.empty((*lead, (dim * bits + 7) // 8), dtype=torch.uint8, device=x.device)
    scale = torch.empty(lead, dtype=torch.float16, device=x.device)
    zero = torch.empty(lead, dtype=torch.uint8, device=x.device)
    _store(x.contiguous(), (packed, scale, zero), bits, symmetric, clip, 0, (1, lead.numel(), 1), 0)
    return packed, scale, zero


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
    """`kv_append` of reference.py."""
    if key.numel() == 0:
        return
    batch, seq, heads, dim = key.shape
    shape, r3 = (batch, seq, heads), 0
    if base is not None:
        usual = base.shape[0] == 1 and 16 <= block <= WIDEST_R3 and dim == power2(dim) and bits in (4, 8)
        r3 = block if usual else 0
        key = key if usual else transformed(key, base, block, torch.float32)
    _store(key.contiguous(), (k_packed, k_scale, k_zero), bits, k_zero is None, clip, r3, shape, position, shift)
    _store(value.contiguous(), (v_packed, v_scale, v_zero), bits, v_zero is None, clip, 0, shape, position)


@triton.jit
def _read(
    packed, scale, zero, out, size, dim, row_bytes, BITS: tl.constexpr, HAS_ZERO: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, DIM)[None, :]
    held = row < size
    mask = held[:, None] & (columns < dim)
    codes = load_bits(packed, row[:, None] * row_bytes, columns, mask, row_bytes, BITS)
    shift = tl.zeros((ROWS,), tl.int32) + (1 << (BITS - 1))
    if HAS_ZERO:
        shift = tl.load(zero + row, mask=held, other=0).to(tl.int32)
    step = tl.load(scale + row, mask=held, other=0.0).to(tl.float32)
    values = (codes - shift[:, None]).to(tl.float32) * step[:, None]
    tl.store(out + row[:, None] * dim + columns, values.to(out.dtype.element_ty), mask=mask)


def kv_dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, width: int, bits: int, dtype: torch.dtype
) -> Tensor:
    """`kv_dequantize` of reference.py."""
    if scale.numel() == 0 or width == 0:
        return reference.kv_dequantize(packed, scale, zero, width, bits, dtype)
    out = torch.empty((*packed.shape[:-1], width), dtype=dtype, device=packed.device)
    size, dim = scale.numel(), power2(width)
    rows = max(1, 2048 // dim)
    stored = (packed.contiguous(), scale.contiguous(), None if zero is None else zero.contiguous())
    shape = (size, width, packed.shape[-1])
    _read[(ceil_div(size, rows),)](*stored, out, *shape, bits, zero is not None, rows, dim)
    return out
