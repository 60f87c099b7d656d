"""`w4a8_mm` and `w4a4_mm`: int8 activation codes times packed 4-bit weights on int8 tensor cores.

Codes are multiplied as they are, 0..15 by -128..127. Zero points are put right afterwards, on the int32 sums of a
group: sum (q - x_zero)(u - zero) = sum q u - zero sum q - x_zero (sum u - count zero). Every sum of integers is exact;
with one scale per row so is the sum over splits, and the result is that of the reference, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfrot_kernels.ops.w4a8 import reference
from dfrot_kernels.ops.w4a16.triton import FEW, plan
from dfrot_kernels.triton.launch import EXACT, ceil_div, config, dense, power2, tuned
from dfrot_kernels.triton.weights import gather, load_codes, parts


@triton.jit
def _part(
    part, sum_q, sum_u, q, packed, tokens, token_held, rows, row_held, first, begin, end, k, row_bytes,
    SUMS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """int32 sums plus those of columns begin <= k < end of the block from byte `first` on; SUMS: of the codes too."""
    columns = 2 * first + tl.arange(0, BLOCK_K)
    inside = ((columns >= begin) & (columns < end))[None, :]
    codes = load_codes(packed, rows, row_held, first, row_bytes, BLOCK_N, BLOCK_K).to(tl.int8)
    values = tl.load(q + tokens[:, None] * k + columns[None, :], mask=token_held[:, None] & inside, other=0)
    part = tl.dot(codes, tl.trans(values), part, out_dtype=tl.int32)
    if SUMS:
        sum_q += tl.sum(values.to(tl.int32), 1)
        sum_u += tl.sum(tl.where(inside, codes.to(tl.int32), 0), 1)
    return part, sum_q, sum_u


@triton.jit
def _corrected(part, sum_q, sum_u, zeros, x_zeros, count):
    """int32 [BLOCK_N, BLOCK_M]: sum of (q - x_zero)(u - zero) from the sum of q u."""
    return part - zeros[:, None] * sum_q[None, :] - (sum_u - count * zeros)[:, None] * x_zeros[None, :]


@triton.jit
def _grouped(
    q, packed, scale, zero, sums_q, sums_u, zeros, x_zeros, tokens, token_held, rows, row_held, first_group, last_group,
    k, row_bytes, groups,
    GROUP: tl.constexpr, HAS_ZERO: tl.constexpr, SUMS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_N, BLOCK_M]: the scaled sums of groups first_group .. last_group - 1, added in order."""
    result = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for g in range(first_group, last_group):
        begin, end = g * GROUP, tl.minimum((g + 1) * GROUP, k)
        part = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
        sum_q = tl.zeros((BLOCK_M,), tl.int32)
        sum_u = tl.zeros((BLOCK_N,), tl.int32)
        for i in tl.static_range((GROUP + GROUP % 2 + STEP - 1) // STEP):
            part, sum_q, sum_u = _part(part, sum_q, sum_u, q, packed, tokens, token_held, rows, row_held,
                                       begin // 2 + i * (STEP // 2), begin, end, k, row_bytes,
                                       SUMS, BLOCK_N, STEP)  # fmt: skip
        if HAS_ZERO:
            zeros = tl.load(zero + rows * groups + g, mask=row_held, other=0).to(tl.int32)
        if not SUMS:
            sum_q = tl.load(sums_q + tokens * groups + g, mask=token_held, other=0)
            sum_u = tl.load(sums_u + rows * groups + g, mask=row_held, other=0)
        total = _corrected(part, sum_q, sum_u, zeros, x_zeros, end - begin)
        scales = tl.load(scale + rows * groups + g, mask=row_held, other=0.0).to(tl.float32)
        result += total.to(tl.float32) * scales[:, None]
    return result


@triton.jit
def _w4a8(
    q, x_scale, x_zero, packed, scale, zero, sums_q, sums_u, out, m, n, k, row_bytes, groups, per_split, bucket,
    GROUP: tl.constexpr, HAS_ZERO: tl.constexpr, MOST_K: tl.constexpr, SUMS: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of out [splits, M, N]: split `program_id(2)` sums `per_split` bytes of a row, or groups (GROUP > 0).

    SUMS: sum the codes here; otherwise they come in sums_q [M, G] and sums_u [N, G]. WHOLE: K is not split, the
    result is final.
    """
    STEP: tl.constexpr = BLOCK_K if BLOCK_K < MOST_K else MOST_K
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    token_held, row_held = tokens < m, rows < n
    x_zeros = tl.load(x_zero + tokens, mask=token_held, other=0)
    zeros = tl.full((BLOCK_N,), 8, tl.int32)
    sum_q = tl.zeros((BLOCK_M,), tl.int32)
    sum_u = tl.zeros((BLOCK_N,), tl.int32)
    part = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    if GROUP == 0:
        end = tl.minimum((split + 1) * per_split * 2, k)
        for first in range(split * per_split, (end + 1) // 2, STEP // 2):
            part, sum_q, sum_u = _part(part, sum_q, sum_u, q, packed, tokens, token_held, rows, row_held,
                                       first, 0, end, k, row_bytes, SUMS, BLOCK_N, STEP)  # fmt: skip
        if HAS_ZERO:
            zeros = tl.load(zero + rows, mask=row_held, other=0).to(tl.int32)
        if not SUMS:
            sum_q = tl.load(sums_q + tokens, mask=token_held, other=0)
            sum_u = tl.load(sums_u + rows, mask=row_held, other=0)
        result = _corrected(part, sum_q, sum_u, zeros, x_zeros, end - split * per_split * 2)
        if WHOLE:
            scales = tl.load(scale + rows, mask=row_held, other=0.0).to(tl.float32)
            result = result.to(tl.float32) * scales[:, None]
    else:
        last = tl.minimum((split + 1) * per_split, groups)
        result = _grouped(q, packed, scale, zero, sums_q, sums_u, zeros, x_zeros, tokens, token_held, rows, row_held,
                          split * per_split, last, k, row_bytes, groups, GROUP, HAS_ZERO, SUMS, BLOCK_N, BLOCK_M,
                          STEP)  # fmt: skip
    if WHOLE:
        result *= tl.load(x_scale + tokens, mask=token_held, other=0.0)[None, :]
    at = (split * m + tokens)[:, None] * n + rows[None, :]
    tl.store(out + at, tl.trans(result), mask=token_held[:, None] & row_held[None, :])


@triton.jit
def _group_sums(source, out, size, k, row_bytes, groups, group, PACKED: tl.constexpr, ROWS: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    """out int32 [size, G]: sums over each group of int8 codes [size, K], or of packed ones [size, bytes]."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    g = tl.program_id(1)
    held = rows < size
    begin, end = g * group, tl.minimum((g + 1) * group, k)
    total = tl.zeros((ROWS, BLOCK), tl.int32)
    for at in range(begin // 2 * 2, end, BLOCK):
        columns = at + tl.arange(0, BLOCK)
        mask = held[:, None] & ((columns >= begin) & (columns < end))[None, :]
        if PACKED:
            codes = load_codes(source, rows, held, at // 2, row_bytes, ROWS, BLOCK)
            total += tl.where(mask, codes.to(tl.int32), 0)
        else:
            total += tl.load(source + rows[:, None] * k + columns[None, :], mask=mask, other=0).to(tl.int32)
    tl.store(out + rows * groups + g, tl.sum(total, 1), mask=held)


def group_sums(source: Tensor, k: int, group: int, groups: int, packed: bool) -> Tensor:
    """int8 codes [M, K], or packed ones [N, bytes] -> int32 [rows, G]."""
    size = source.shape[0]
    out = torch.empty((size, groups), dtype=torch.int32, device=source.device)
    shape = (size, k, source.shape[1], groups, group or k)
    block = min(max(32, power2(group or k)), 256)
    _group_sums[(ceil_div(size, 16), groups)](source, out, *shape, packed, 16, block)
    return out


_KEY = ["n", "k", "bucket", "GROUP"]
_DECODE = [
    config(4, 3, BLOCK_N=64, BLOCK_M=16, BLOCK_K=128),
    config(4, 4, BLOCK_N=32, BLOCK_M=16, BLOCK_K=256),
    config(4, 3, BLOCK_N=64, BLOCK_M=16, BLOCK_K=256),
    config(8, 3, BLOCK_N=128, BLOCK_M=16, BLOCK_K=128),
]
_PREFILL = [
    config(4, 3, BLOCK_N=64, BLOCK_M=64, BLOCK_K=128),
    config(4, 3, BLOCK_N=128, BLOCK_M=64, BLOCK_K=64),
    config(8, 3, BLOCK_N=128, BLOCK_M=128, BLOCK_K=128),
    config(8, 4, BLOCK_N=128, BLOCK_M=128, BLOCK_K=64),
    config(8, 3, BLOCK_N=128, BLOCK_M=256, BLOCK_K=64),
]
decode, prefill = tuned(_DECODE, _KEY)(_w4a8), tuned(_PREFILL, _KEY)(_w4a8)


def w4a8_mm(
    q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
) -> Tensor:
    """`w4a8_mm` of reference.py: exact integer sums per group. K is split as in `w4a16_mm`."""
    (m, k), n = q.shape, packed.shape[0]
    if q.numel() == 0 or n == 0:
        return reference.w4a8_mm(q, x_scale, x_zero, packed, scale, zero, group)
    group = 0 if group >= k else group
    groups, few = scale.shape[1], m <= FEW
    q, packed = q.contiguous(), packed.contiguous()
    out = torch.empty((m, n), dtype=torch.float32, device=q.device)
    count, per_split, max_block_k = plan(m, n, k, group, q.device)
    target = parts(count, out, torch.float32 if group else torch.int32) if count > 1 else out
    # many rows: every tile would sum the same codes again, so they are summed once, before
    sums = (None, None) if few else (group_sums(q, k, group, groups, False), group_sums(packed, k, group, groups, True))
    operands = (q, x_scale.contiguous(), x_zero.contiguous(), packed, scale.contiguous(), dense(zero), *sums, target)
    sizes = (m, n, k, packed.shape[1], groups, per_split, power2(m))
    kernel = decode if few else prefill
    kernel[lambda meta: (ceil_div(m, meta["BLOCK_M"]), ceil_div(n, meta["BLOCK_N"]), count)](
        *operands, *sizes, group, zero is not None, max_block_k, few, count == 1, **EXACT
    )
    if count > 1:
        gather(target, out, None if group else scale.contiguous(), x_scale.contiguous())
    return out


w4a4_mm = w4a8_mm
