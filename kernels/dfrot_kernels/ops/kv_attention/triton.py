"""`kv_attention`: a few query rows on the packed cache, cut along its length (FlashDecoding, arXiv:2311.01282).

Codes minus zero points are exact in bfloat16. The scale of a key is applied to its score, that of a value to its
weight; queries and weights are two bfloat16 terms. Query heads that share a kv head share a program, which unpacks
split_length key once for all of them. Every program writes its own sums; a second kernel joins them in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfrot_kernels.ops.hadamard.triton import transformed
from dfrot_kernels.ops.kv_cache.triton import load_bits
from dfrot_kernels.triton.launch import ceil_div, config, dense, power2, splits, tuned
from dfrot_kernels.triton.rows import INF, dot
from dfrot_kernels.triton.weights import low_part, to_float

BLOCK = 128  # positions that splits are cut at


@triton.jit
def _unpacked(packed, scale, zero, at, held, row_bytes, dim, BITS: tl.constexpr, HAS_ZERO: tl.constexpr,
              LENGTH: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    """Rows `at` of a store -> codes minus zero points bfloat16 [LENGTH, DIM], scale float32 [LENGTH]."""
    if BITS == 4:
        byte = tl.arange(0, DIM // 2)[None, :]
        mask = held[:, None] & (byte < row_bytes)
        pairs = tl.load(packed + at[:, None] * row_bytes + byte, mask=mask, other=0)
        codes = tl.reshape(tl.join(pairs & 15, pairs >> 4), (LENGTH, DIM))
    else:
        columns = tl.arange(0, DIM)[None, :]
        mask = held[:, None] & (columns < dim)
        codes = load_bits(packed, at[:, None] * row_bytes, columns, mask, row_bytes, BITS).to(tl.uint8)
    zeros = tl.full((LENGTH,), 1 << (BITS - 1), tl.uint8)
    if HAS_ZERO:
        zeros = tl.load(zero + at, mask=held, other=0)
    steps = tl.load(scale + at, mask=held, other=0.0).to(tl.float32)
    return to_float(codes, zeros[:, None], tl.bfloat16), steps


@triton.jit
def _visible(pos, inside, row, row_held, start, tree, past, length, seq, HAS_TREE: tl.constexpr):
    """bool [rows, positions]: what each query row may look at. `tree` points at the mask of this sequence."""
    new = pos[None, :] - past
    ahead = (new >= 0) & (pos < length)[None, :]
    if HAS_TREE:
        inside_rows = row_held[:, None] & ahead
        shown = inside_rows & (tl.load(tree + row[:, None] * seq + new, mask=inside_rows, other=0) != 0)
    else:
        shown = ahead & (new <= row[:, None])
    cached = (new < 0) & (pos[None, :] >= start[:, None])
    return row_held[:, None] & inside[None, :] & (cached | shown)


@triton.jit
def _softmax_step(scores, visible, peak, total):
    """One step of the running softmax: weights, factor for what was summed before, new maximum and total. A NaN score
    makes its row's total NaN."""
    scores = tl.where(visible, scores, -INF)
    above = tl.maximum(peak, tl.max(scores, 1))
    level = tl.where(above == -INF, 0.0, above)
    weights = tl.where(visible, tl.exp(scores - level[:, None]), 0.0)
    factor = tl.exp(peak - level)
    return weights, factor, above, total * factor + tl.sum(weights, 1)


@triton.jit
def _sink_step(
    query, k_sink, v_sink, sink, sinks, b, batch, kv_head, kv_heads, row, row_held, start, tree, past, length, seq, dim,
    v_dim, scaling, peak, total,
    HAS_TREE: tl.constexpr, SINKS: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
):  # fmt: skip
    """The exact positions from `sink` on, in float32 throughout: sums of values, new maximum and total of each row."""
    columns, v_columns = tl.arange(0, DIM), tl.arange(0, V_DIM)
    i = tl.arange(0, SINKS)
    pos = sink + i
    held = (i < sinks) & (pos >= 0) & (pos < length)
    at = ((i * batch + b) * kv_heads + kv_head).to(tl.int64)[:, None]
    mask = held[:, None] & (columns < dim)[None, :]
    keys = tl.load(k_sink + at * dim + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    mask = held[:, None] & (v_columns < v_dim)[None, :]
    values = tl.load(v_sink + at * v_dim + v_columns[None, :], mask=mask, other=0.0).to(tl.float32)
    visible = _visible(pos, held, row, row_held, start, tree, past, length, seq, HAS_TREE)
    scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scaling
    weights, _, peak, total = _softmax_step(scores, visible, peak, total)
    finite = tl.abs(values) < INF
    acc = tl.dot(weights, tl.where(finite, values, 0.0), input_precision="ieee")
    # a weight of zero does not silence NaN: it must reach the rows that see it, and no other
    reached = tl.dot(visible.to(tl.float32), tl.where(finite, 0.0, 1.0), input_precision="ieee")
    return tl.where(reached > 0, float("nan"), acc), peak, total


@triton.jit
def _block_step(
    high, low, k_packed, k_scale, k_zero, v_packed, v_scale, v_zero, pos, held, inside, at, row, row_held, start, tree,
    past, length, seq, dim, v_dim, k_bytes, v_bytes, scaling, acc, peak, total,
    BITS: tl.constexpr, K_ZERO: tl.constexpr, V_ZERO: tl.constexpr, HAS_TREE: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, V_DIM: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """One block of stored positions (rows `at` of the stores): sums of values, new maximum and total of each row."""
    keys, steps = _unpacked(k_packed, k_scale, k_zero, at, held, k_bytes, dim, BITS, K_ZERO, BLOCK_L, DIM)
    keys = tl.trans(keys)
    scores = dot(low, keys, dot(high, keys, tl.zeros((ROWS, BLOCK_L), tl.float32)))
    visible = _visible(pos, inside, row, row_held, start, tree, past, length, seq, HAS_TREE)
    weights, factor, peak, total = _softmax_step(scores * (scaling * steps)[None, :], visible, peak, total)
    values, steps = _unpacked(v_packed, v_scale, v_zero, at, held, v_bytes, v_dim, BITS, V_ZERO, BLOCK_L, V_DIM)
    weights = tl.where(visible, weights * steps[None, :], 0.0)
    heavy = weights.to(tl.bfloat16)
    acc = dot(low_part(weights, heavy), values, dot(heavy, values, acc * factor[:, None]))
    return acc, peak, total


# Its parameters are what Triton passes to a program: an address and a size for each of ten tensors, and constants.
@triton.jit
def _attention(
    q, k_packed, k_scale, k_zero, v_packed, v_scale, v_zero, first, tree, k_sink, v_sink, sink_start,
    acc_out, peak_out, total_out, batch, seq, kv_heads, share, length, dim, v_dim, k_bytes, v_bytes, tree_step, sinks,
    per_split, scaling, bucket,
    BITS: tl.constexpr, K_ZERO: tl.constexpr, V_ZERO: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_TREE: tl.constexpr,
    HAS_START: tl.constexpr, SINKS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Sums of one kv head of one sequence over `per_split` positions, for ROWS of its seq * share query rows."""
    b, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    split = tl.program_id(2)
    line = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row_held = line < seq * share
    row = line // share
    at_q = ((b * seq + row) * kv_heads * share + kv_head * share + line % share).to(tl.int64)
    columns, v_columns = tl.arange(0, DIM), tl.arange(0, V_DIM)
    mask = row_held[:, None] & (columns < dim)[None, :]
    query = tl.load(q + at_q[:, None] * dim + columns[None, :], mask=mask, other=0.0)
    high = query.to(tl.bfloat16)
    low = low_part(query, high)
    past = length - seq
    start = tl.zeros((ROWS,), tl.int32)
    if HAS_FIRST:
        first_position = tl.load(first + b * seq + row, mask=row_held, other=length)
        start = tl.minimum(tl.maximum(first_position, 0), length).to(tl.int32)
    tree += b * tree_step
    peak = tl.full((ROWS,), -INF, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, V_DIM), tl.float32)
    sink = 0
    if SINKS > 0:
        if HAS_START:
            sink = tl.minimum(tl.maximum(tl.load(sink_start + b), -(1 << 30)), 1 << 30).to(tl.int32)
        if split == 0:
            acc, peak, total = _sink_step(
                query, k_sink, v_sink, sink, sinks, b, batch, kv_head, kv_heads, row, row_held, start, tree, past,
                length, seq, dim, v_dim, scaling, peak, total, HAS_TREE, SINKS, DIM, V_DIM,
            )  # fmt: skip
    begin, end = split * per_split, tl.minimum((split + 1) * per_split, length)
    if HAS_FIRST:  # blocks before every row's window
        begin = tl.maximum(begin, tl.minimum(tl.min(start), past) // BLOCK_L * BLOCK_L)
    for at_pos in range(begin, end, BLOCK_L):
        pos = at_pos + tl.arange(0, BLOCK_L)
        held = pos < end
        inside = held
        if SINKS > 0:
            inside = held & ((pos < sink) | (pos >= sink + sinks))
        at = (pos.to(tl.int64) * batch + b) * kv_heads + kv_head
        acc, peak, total = _block_step(
            high, low, k_packed, k_scale, k_zero, v_packed, v_scale, v_zero, pos, held, inside, at, row, row_held,
            start, tree, past, length, seq, dim, v_dim, k_bytes, v_bytes, scaling, acc, peak, total,
            BITS, K_ZERO, V_ZERO, HAS_TREE, ROWS, DIM, V_DIM, BLOCK_L,
        )  # fmt: skip
    heads = kv_heads * share
    to = split * batch * seq * heads + at_q
    mask = row_held[:, None] & (v_columns < v_dim)[None, :]
    tl.store(acc_out + to[:, None] * v_dim + v_columns[None, :], acc, mask=mask)
    tl.store(peak_out + to, peak, mask=row_held)
    tl.store(total_out + to, total, mask=row_held)


@triton.jit
def _join(acc_in, peak_in, total_in, out, size, v_dim, PARTS: tl.constexpr, V_DIM: tl.constexpr):
    """One query row: the softmax over all parts from the sums of each, added in order."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, V_DIM)
    mask = columns < v_dim
    level = tl.full((), -INF, tl.float32)
    for part in range(PARTS):
        level = tl.maximum(level, tl.load(peak_in + part * size + row))
    level = tl.where(level == -INF, 0.0, level)
    acc = tl.zeros((V_DIM,), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for part in range(PARTS):
        factor = tl.exp(tl.load(peak_in + part * size + row) - level)
        total += factor * tl.load(total_in + part * size + row)
        acc += factor * tl.load(acc_in + (part * size + row) * v_dim + columns, mask=mask, other=0.0)
    result = tl.where(total == 0.0, acc, acc / total)
    tl.store(out + row * v_dim + columns, result.to(out.dtype.element_ty), mask=mask)


_CONFIGS = [
    config(4, 2, BLOCK_L=64),
    config(4, 3, BLOCK_L=32),
    config(8, 2, BLOCK_L=128),
    config(4, 4, BLOCK_L=64),
    config(8, 2, BLOCK_L=32),
]
attend = tuned(_CONFIGS, ["bucket", "ROWS", "DIM", "V_DIM", "BITS"])(_attention)


def kv_attention(
    query: Tensor,
    k_packed: Tensor,
    k_scale: Tensor,
    k_zero: Tensor | None,
    v_packed: Tensor,
    v_scale: Tensor,
    v_zero: Tensor | None,
    length: int,
    v_dim: int,
    bits: int,
    scaling: float,
    base: Tensor | None,
    block: int,
    first: Tensor | None,
    tree: Tensor | None,
    k_sink: Tensor | None,
    v_sink: Tensor | None,
    sink_start: Tensor | None,
) -> Tensor:
    """`kv_attention` of reference.py, cut along its length; the parts are joined in order."""
    batch, seq, heads, dim = query.shape
    kv_heads, device = k_packed.shape[2], query.device
    out = torch.empty((batch, seq, heads, v_dim), dtype=query.dtype, device=device)
    if out.numel() == 0:
        return out
    q = query.float() if base is None else transformed(query, base, block, torch.float32)
    share, size = heads // kv_heads, batch * seq * heads
    rows = min(64 if dim <= 128 else 16, max(16, power2(seq * share)))
    tiles = ceil_div(seq * share, rows)
    units = ceil_div(length, BLOCK)
    split_length = ceil_div(units, splits(batch * kv_heads * tiles, units, device, 64)) * BLOCK
    count = ceil_div(length, split_length)
    acc = torch.empty((count, size, v_dim), dtype=torch.float32, device=device)
    peak, total = (torch.empty((count, size), dtype=torch.float32, device=device) for _ in range(2))
    stores = (dense(part) for part in (k_packed, k_scale, k_zero, v_packed, v_scale, v_zero))
    mask = None if tree is None else tree.contiguous().view(torch.uint8)
    sinks = 0 if k_sink is None else k_sink.shape[0]
    visibility = (dense(first), q if mask is None else mask, dense(k_sink), dense(v_sink), dense(sink_start))
    sizes = (batch, seq, kv_heads, share, length, dim, v_dim, k_packed.shape[-1], v_packed.shape[-1])
    tree_step = seq * seq if tree is not None and tree.dim() == 3 else 0
    has = (k_zero is not None, v_zero is not None, first is not None, tree is not None, sink_start is not None)
    blocks = (max(16, power2(sinks)) if sinks else 0, rows, max(16, power2(dim)), max(16, power2(v_dim)))
    attend[(batch * kv_heads, tiles, count)](
        q.contiguous(), *stores, *visibility, acc, peak, total, *sizes, tree_step, sinks, split_length, scaling,
        power2(length), bits, *has, *blocks,
    )  # fmt: skip
    _join[(size,)](acc, peak, total, out, size, v_dim, count, blocks[3])
    return out
