"""`w4a16_mm`: floating-point activations times packed 4-bit weights, on tensor cores.

Codes minus zero points are exact in 16 bits; scales are applied to the float32 sums of a group. float32 activations
are taken as two bfloat16 terms, so that their error (2^-17) stays far below that of a 16-bit model.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfrot_kernels.ops.w4a16 import reference
from dfrot_kernels.triton.launch import ceil_div, config, dense, power2, splits, tuned
from dfrot_kernels.triton.rows import dot
from dfrot_kernels.triton.weights import gather, load_codes, low_part, parts, to_float

FEW = 16  # rows up to which K is split over programs: decoding, and verification of short drafts


@triton.jit
def _part(
    part, x, packed, tokens, token_held, rows, row_held, first, begin, end, k, row_bytes, zeros,
    KIND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`part` [BLOCK_N, BLOCK_M] plus the products of columns begin <= k < end of the block from byte `first` on."""
    codes = load_codes(packed, rows, row_held, first, row_bytes, BLOCK_N, BLOCK_K)
    weight = to_float(codes, zeros[:, None], KIND)
    columns = 2 * first + tl.arange(0, BLOCK_K)
    mask = token_held[:, None] & ((columns >= begin) & (columns < end))[None, :]
    values = tl.load(x + tokens[:, None] * k + columns[None, :], mask=mask, other=0.0)
    high = values.to(KIND)
    part = dot(weight, tl.trans(high), part)
    if x.dtype.element_ty == tl.float32:
        part = dot(weight, tl.trans(low_part(values, high)), part)
    return part


@triton.jit
def _w4a16(
    x, packed, scale, zero, out, m, n, k, row_bytes, groups, per_split, bucket,
    GROUP: tl.constexpr, HAS_ZERO: tl.constexpr, MOST_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of out [splits, M, N]: split `program_id(2)` sums `per_split` bytes of a row, or groups (GROUP > 0)."""
    KIND: tl.constexpr = tl.float16 if x.dtype.element_ty is tl.float16 else tl.bfloat16
    STEP: tl.constexpr = BLOCK_K if BLOCK_K < MOST_K else MOST_K
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    token_held, row_held = tokens < m, rows < n
    zeros = tl.full((BLOCK_N,), 8, tl.uint8)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if GROUP == 0:
        if HAS_ZERO:
            zeros = tl.load(zero + rows, mask=row_held, other=0)
        end = tl.minimum((split + 1) * per_split * 2, k)
        for first in range(split * per_split, (end + 1) // 2, STEP // 2):
            acc = _part(acc, x, packed, tokens, token_held, rows, row_held, first, 0, end, k, row_bytes, zeros,
                        KIND, BLOCK_N, STEP)  # fmt: skip
        acc *= tl.load(scale + rows, mask=row_held, other=0.0).to(tl.float32)[:, None]
    else:
        for g in range(split * per_split, tl.minimum((split + 1) * per_split, groups)):
            if HAS_ZERO:
                zeros = tl.load(zero + rows * groups + g, mask=row_held, other=0)
            scales = tl.load(scale + rows * groups + g, mask=row_held, other=0.0).to(tl.float32)
            begin, end = g * GROUP, tl.minimum((g + 1) * GROUP, k)
            part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for i in tl.static_range((GROUP + GROUP % 2 + STEP - 1) // STEP):
                part = _part(part, x, packed, tokens, token_held, rows, row_held, begin // 2 + i * (STEP // 2),
                             begin, end, k, row_bytes, zeros, KIND, BLOCK_N, STEP)  # fmt: skip
            acc += part * scales[:, None]
    at = (split * m + tokens)[:, None] * n + rows[None, :]
    tl.store(out + at, tl.trans(acc).to(out.dtype.element_ty), mask=token_held[:, None] & row_held[None, :])


_KEY = ["n", "k", "bucket", "GROUP"]
_DECODE = [
    config(4, 3, BLOCK_N=64, BLOCK_M=16, BLOCK_K=128),
    config(4, 4, BLOCK_N=32, BLOCK_M=16, BLOCK_K=256),
    config(4, 5, BLOCK_N=64, BLOCK_M=16, BLOCK_K=64),
    config(8, 3, BLOCK_N=128, BLOCK_M=16, BLOCK_K=128),
    config(4, 3, BLOCK_N=128, BLOCK_M=16, BLOCK_K=64),
]
_PREFILL = [
    config(4, 3, BLOCK_N=64, BLOCK_M=64, BLOCK_K=64),
    config(4, 3, BLOCK_N=128, BLOCK_M=32, BLOCK_K=64),
    config(8, 3, BLOCK_N=128, BLOCK_M=128, BLOCK_K=64),
    config(8, 4, BLOCK_N=128, BLOCK_M=128, BLOCK_K=32),
    config(8, 3, BLOCK_N=128, BLOCK_M=256, BLOCK_K=64),
]
decode, prefill = tuned(_DECODE, _KEY)(_w4a16), tuned(_PREFILL, _KEY)(_w4a16)


def plan(m: int, n: int, k: int, group: int, device: torch.device) -> tuple[int, int, int]:
    """How K is cut for M rows: (number of splits, bytes or groups of each, largest useful block of columns)."""
    units, unit = (ceil_div(k, group), 1) if group else (ceil_div(k, 256), 128)
    count = splits(ceil_div(n, 64), units, device) if m <= FEW else 1
    per_split = ceil_div(units, count)
    return ceil_div(units, per_split), per_split * unit, max(32, power2(group)) if group else 1 << 20


def w4a16_mm(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> Tensor:
    """`w4a16_mm` of reference.py. K is split over programs where rows are few; parts are summed in order."""
    n, k = packed.shape[0], x.shape[-1]
    if x.numel() == 0 or n == 0:
        return reference.w4a16_mm(x, packed, scale, zero, group)
    group = 0 if group >= k else group
    rows = x.reshape(-1, k).contiguous()
    m = rows.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    count, per_split, max_block_k = plan(m, n, k, group, x.device)
    target = parts(count, out, torch.float32) if count > 1 else out
    kernel = decode if m <= FEW else prefill
    weight = (packed.contiguous(), scale.contiguous(), dense(zero))
    sizes = (m, n, k, packed.shape[1], scale.shape[1], per_split, power2(m))
    kernel[lambda meta: (ceil_div(m, meta["BLOCK_M"]), ceil_div(n, meta["BLOCK_N"]), count)](
        rows, *weight, target, *sizes, group, zero is not None, max_block_k
    )
    if count > 1:
        gather(target, out)
    return out.reshape(*x.shape[:-1], n)
