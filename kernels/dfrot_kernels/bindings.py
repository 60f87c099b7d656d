"""The functions of csrc/dfq_abi.h for tensors: every argument by its name, the number of threads is torch's.

Written by generate_abi.py from dfrot_kernels/abi; edit the description, not this file.
Tensors are passed by address and must be contiguous; None is a null pointer. Raises MemoryError without memory for
scratch space, RuntimeError for arguments outside a kernel's limits. native.py fills `functions` when it loads the
library.
"""
# fmt: off

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NoReturn

import torch
from torch import Tensor

functions: dict[str, Callable[[bytes], int]] = {}  # symbol -> its function, on the words of its arguments
_threads = torch.get_num_threads


def _refuse(name: str, code: int) -> NoReturn:
    if code == 1:
        raise MemoryError(f"{name}: no memory for scratch space")
    raise RuntimeError(f"{name}: arguments beyond the kernel's limits (code {code}); DFQ_IMPL=reference has none")


_pack = Struct("=qqqqqq").pack

def pack(*, codes: Tensor, n: int, k: int, bits: int, packed: Tensor) -> None:
    """dfq_pack: codes [n, k], each below 2^bits -> packed [n, ceil(k bits / 8)]; bits 2..8."""
    code = functions["dfq_pack"](_pack(codes.data_ptr(), n, k, bits, packed.data_ptr(), _threads()))
    if code:
        _refuse("dfq_pack", code)


_unpack = Struct("=qqqqqq").pack

def unpack(*, packed: Tensor, n: int, k: int, bits: int, codes: Tensor) -> None:
    """dfq_unpack: The inverse of dfq_pack."""
    code = functions["dfq_unpack"](_unpack(packed.data_ptr(), n, k, bits, codes.data_ptr(), _threads()))
    if code:
        _refuse("dfq_unpack", code)


_quantize_per_token = Struct("=qqqqqqdqqqq").pack

def quantize_per_token(*, x: Tensor, dtype: int, m: int, k: int, bits: int, symmetric: int, clip: float,
                       codes: Tensor, scale: Tensor, zero: Tensor) -> None:
    """dfq_quantize_per_token: x [m, k] -> codes [m, k], scale [m], zero [m]: x = scale * (q - zero). A row with NaN
    or Inf: scale NaN, codes 0."""
    code = functions["dfq_quantize_per_token"](_quantize_per_token(x.data_ptr(), dtype, m, k, bits, symmetric, clip,
        codes.data_ptr(), scale.data_ptr(), zero.data_ptr(), _threads()))
    if code:
        _refuse("dfq_quantize_per_token", code)


_hadamard = Struct("=qqqqqqqq").pack

def hadamard(*, x: Tensor, dtype: int, rows: int, block: int, base: Tensor, order: int, out: Tensor) -> None:
    """dfq_hadamard: out = x (base (x) Sylvester(block / order)) / sqrt(block) for each of `rows` rows of `block`
    values."""
    code = functions["dfq_hadamard"](_hadamard(x.data_ptr(), dtype, rows, block, base.data_ptr(), order,
        out.data_ptr(), _threads()))
    if code:
        _refuse("dfq_hadamard", code)


_kv_quantize = Struct("=qqqqqqdqqqq").pack

def kv_quantize(*, x: Tensor, dtype: int, rows: int, width: int, bits: int, symmetric: int, clip: float,
                packed: Tensor, scale: Tensor, zero: Tensor) -> None:
    """dfq_kv_quantize: Each row of x [rows, width] -> packed unsigned codes, float16 scale, zero (2^(bits-1) when
    symmetric)."""
    code = functions["dfq_kv_quantize"](_kv_quantize(x.data_ptr(), dtype, rows, width, bits, symmetric, clip,
        packed.data_ptr(), scale.data_ptr(), zero.data_ptr(), _threads()))
    if code:
        _refuse("dfq_kv_quantize", code)


_kv_dequantize = Struct("=qqqqqqqqq").pack

def kv_dequantize(*, packed: Tensor, scale: Tensor, zero: Tensor | None, rows: int, width: int, bits: int, dtype: int,
                  out: Tensor) -> None:
    """dfq_kv_dequantize: The inverse of dfq_kv_quantize up to rounding; zero null: 2^(bits-1)."""
    code = functions["dfq_kv_dequantize"](_kv_dequantize(packed.data_ptr(), scale.data_ptr(),
        0 if zero is None else zero.data_ptr(), rows, width, bits, dtype, out.data_ptr(), _threads()))
    if code:
        _refuse("dfq_kv_dequantize", code)


_hadamard_quantize = Struct("=qqqqqqqqqdqqqq").pack

def hadamard_quantize(*, x: Tensor, dtype: int, m: int, k: int, base: Tensor | None, order: int, block: int,
                      bits: int, symmetric: int, clip: float, codes: Tensor, scale: Tensor, zero: Tensor) -> None:
    """dfq_hadamard_quantize: Codes as dfq_quantize_per_token gives them, of rows that are rotated first. base null:
    no transform, else [order, order] of the Hadamard transform in blocks of `block`, computed in float32 and not
    rounded."""
    code = functions["dfq_hadamard_quantize"](_hadamard_quantize(x.data_ptr(), dtype, m, k,
        0 if base is None else base.data_ptr(), order, block, bits, symmetric, clip, codes.data_ptr(),
        scale.data_ptr(), zero.data_ptr(), _threads()))
    if code:
        _refuse("dfq_hadamard_quantize", code)


_rmsnorm_quantize = Struct("=qqqqqqdqqdqqqq").pack

def rmsnorm_quantize(*, x: Tensor, dtype: int, m: int, k: int, residual: Tensor | None, weight: Tensor | None,
                     epsilon: float, bits: int, symmetric: int, clip: float, codes: Tensor, scale: Tensor,
                     zero: Tensor) -> None:
    """dfq_rmsnorm_quantize: Codes of residual += x (residual null: x), divided by its root mean square, times weight
    [k] (null: 1); every step is rounded to dtype, the type of x, residual and weight."""
    code = functions["dfq_rmsnorm_quantize"](_rmsnorm_quantize(x.data_ptr(), dtype, m, k,
        0 if residual is None else residual.data_ptr(), 0 if weight is None else weight.data_ptr(), epsilon, bits,
        symmetric, clip, codes.data_ptr(), scale.data_ptr(), zero.data_ptr(), _threads()))
    if code:
        _refuse("dfq_rmsnorm_quantize", code)


_silu_mul_hadamard_quantize = Struct("=qqqqqqqqqqdqqqq").pack

def silu_mul_hadamard_quantize(*, gate: Tensor, up: Tensor, dtype: int, m: int, k: int, base: Tensor | None,
                               order: int, block: int, bits: int, symmetric: int, clip: float, codes: Tensor,
                               scale: Tensor, zero: Tensor) -> None:
    """dfq_silu_mul_hadamard_quantize: Codes of silu(gate) * up, both [m, k], rounded to dtype after each of the two
    steps, rotated as in dfq_hadamard_quantize."""
    code = functions["dfq_silu_mul_hadamard_quantize"](_silu_mul_hadamard_quantize(gate.data_ptr(), up.data_ptr(),
        dtype, m, k, 0 if base is None else base.data_ptr(), order, block, bits, symmetric, clip, codes.data_ptr(),
        scale.data_ptr(), zero.data_ptr(), _threads()))
    if code:
        _refuse("dfq_silu_mul_hadamard_quantize", code)


_dequantize = Struct("=qqqqqqqqq").pack

def dequantize(*, packed: Tensor, scale: Tensor, zero: Tensor | None, n: int, k: int, bits: int, group: int,
               w: Tensor) -> None:
    """dfq_dequantize: w[n, k] = scale * (u - zero): scale bfloat16 bits [n, groups], zero [n, groups] or null
    (2^(bits-1)); group: columns per scale, 0 = one scale per row."""
    code = functions["dfq_dequantize"](_dequantize(packed.data_ptr(), scale.data_ptr(),
        0 if zero is None else zero.data_ptr(), n, k, bits, group, w.data_ptr(), _threads()))
    if code:
        _refuse("dfq_dequantize", code)


_w4a16_mm = Struct("=qqqqqqqqqqq").pack

def w4a16_mm(*, x: Tensor, dtype: int, m: int, n: int, k: int, packed: Tensor, scale: Tensor, zero: Tensor | None,
             group: int, out: Tensor) -> None:
    """dfq_w4a16_mm: out [m, n] = x [m, k] w[n, k]^T with 4-bit w as in dfq_dequantize; float32 sums; out has the
    dtype of x."""
    code = functions["dfq_w4a16_mm"](_w4a16_mm(x.data_ptr(), dtype, m, n, k, packed.data_ptr(), scale.data_ptr(),
        0 if zero is None else zero.data_ptr(), group, out.data_ptr(), _threads()))
    if code:
        _refuse("dfq_w4a16_mm", code)


_w4a8_mm = Struct("=qqqqqqqqqqqq").pack

def w4a8_mm(*, q: Tensor, x_scale: Tensor, x_zero: Tensor, m: int, n: int, k: int, packed: Tensor, scale: Tensor,
            zero: Tensor | None, group: int, out: Tensor) -> None:
    """dfq_w4a8_mm: out[m, n] = x_scale[m] sum_g scale[n, g] sum_{k in g} (q[m, k] - x_zero[m]) (u[n, k] - zero[n,
    g]): exact integer sums per group, groups added in order; k at most 2^19. The range of q is measured: narrow codes
    are multiplied faster, whatever their nominal width."""
    code = functions["dfq_w4a8_mm"](_w4a8_mm(q.data_ptr(), x_scale.data_ptr(), x_zero.data_ptr(), m, n, k,
        packed.data_ptr(), scale.data_ptr(), 0 if zero is None else zero.data_ptr(), group, out.data_ptr(),
        _threads()))
    if code:
        _refuse("dfq_w4a8_mm", code)


_prepack = Struct("=qqqqqqq").pack

def prepack(*, packed: Tensor, n: int, k: int, group: int, tiles: Tensor, sums: Tensor | None) -> None:
    """dfq_prepack: packed [n, ceil(k / 2)] -> tiles [n16 / 16, k8 / 8, 64] (cpu/tile16/tile16_kernels.h) and, unless
    null, sums [groups, n16] of the codes of each group. n16: n rounded up to 16, k8: k rounded up to 8."""
    code = functions["dfq_prepack"](_prepack(packed.data_ptr(), n, k, group, tiles.data_ptr(),
        0 if sums is None else sums.data_ptr(), _threads()))
    if code:
        _refuse("dfq_prepack", code)


_unprepack = Struct("=qqqqq").pack

def unprepack(*, tiles: Tensor, n: int, k: int, packed: Tensor) -> None:
    """dfq_unprepack: The inverse of dfq_prepack."""
    code = functions["dfq_unprepack"](_unprepack(tiles.data_ptr(), n, k, packed.data_ptr(), _threads()))
    if code:
        _refuse("dfq_unprepack", code)


_tiled_w4a16 = Struct("=qqqqqqqqqqqq").pack

def tiled_w4a16(*, x: Tensor, dtype: int, m: int, n: int, k: int, tiles: Tensor, scale: Tensor, zero: Tensor | None,
                group: int, bias: Tensor | None, out: Tensor) -> None:
    """dfq_tiled_w4a16: out [m, n] = x [m, k] w[n, k]^T + bias [n]: float32 sums, cast once to the dtype of x. scale
    bfloat16 bits [groups, n16], zero [groups, n16] or null (8); group: a multiple of 8, 0 = one scale per row; k at
    most 2^19."""
    code = functions["dfq_tiled_w4a16"](_tiled_w4a16(x.data_ptr(), dtype, m, n, k, tiles.data_ptr(), scale.data_ptr(),
        0 if zero is None else zero.data_ptr(), group, 0 if bias is None else bias.data_ptr(), out.data_ptr(),
        _threads()))
    if code:
        _refuse("dfq_tiled_w4a16", code)


_tiled_w4a8 = Struct("=qqqqqqqqqqqqqqq").pack

def tiled_w4a8(*, q: Tensor, x_scale: Tensor, x_zero: Tensor | None, m: int, n: int, k: int, tiles: Tensor,
               scale: Tensor, zero: Tensor | None, sums: Tensor | None, group: int, bias: Tensor | None, dtype: int,
               out: Tensor) -> None:
    """dfq_tiled_w4a8: out[m, n] of `dtype` = the float32 of dfq_w4a8_mm + bias, cast once. x_zero null: 0; otherwise
    sums must be given. Weights as in dfq_tiled_w4a16."""
    code = functions["dfq_tiled_w4a8"](_tiled_w4a8(q.data_ptr(), x_scale.data_ptr(),
        0 if x_zero is None else x_zero.data_ptr(), m, n, k, tiles.data_ptr(), scale.data_ptr(),
        0 if zero is None else zero.data_ptr(), 0 if sums is None else sums.data_ptr(), group,
        0 if bias is None else bias.data_ptr(), dtype, out.data_ptr(), _threads()))
    if code:
        _refuse("dfq_tiled_w4a8", code)


_dense = Struct("=qqqqqqqqqqq").pack

def dense(*, x: Tensor, dtype: int, m: int, n: int, k: int, weight: Tensor, kind: int, scale: Tensor | None,
          group: int, out: Tensor) -> None:
    """dfq_dense: out [m, n] = x [m, k] w[n, k]^T, both of `dtype`; float32 sums, and every row has the bits that it
    has alone. w is of float32 or bfloat16 like x (kind: dtype), or one byte a code (kind: DFQ_CODES8) with zero point
    128 and scale bfloat16 [n, groups]; group: columns per scale, a multiple of 16, 0 = one scale per row. For a few
    rows: the weight is read once for every 16 of them."""
    code = functions["dfq_dense"](_dense(x.data_ptr(), dtype, m, n, k, weight.data_ptr(), kind,
        0 if scale is None else scale.data_ptr(), group, out.data_ptr(), _threads()))
    if code:
        _refuse("dfq_dense", code)


_kv_append = Struct("=qqqqqqqqqqqqqqqqqdqqqqq").pack

def kv_append(*, key: Tensor, value: Tensor, dtype: int, batch: int, rows: int, heads: int, k_dim: int, v_dim: int,
              k_packed: Tensor, k_scale: Tensor, k_zero: Tensor | None, v_packed: Tensor, v_scale: Tensor,
              v_zero: Tensor | None, position: int, bits: int, symmetric: int, clip: float, base: Tensor | None,
              order: int, block: int, shift: Tensor | None) -> None:
    """dfq_kv_append: key [batch, rows, heads, k_dim], value [batch, rows, heads, v_dim] -> positions `position` and
    on of the cache of one layer, in place: codes [positions, batch, heads, bytes], scale and zero [positions, batch,
    heads] as dfq_kv_quantize writes them (zero null: symmetric). Keys are rotated in float32 by R3: base null, or
    [order, order] of the Hadamard transform in blocks of `block`. Then shift [heads, k_dim], if any, is subtracted
    from them in float32."""
    code = functions["dfq_kv_append"](_kv_append(key.data_ptr(), value.data_ptr(), dtype, batch, rows, heads, k_dim,
        v_dim, k_packed.data_ptr(), k_scale.data_ptr(), 0 if k_zero is None else k_zero.data_ptr(),
        v_packed.data_ptr(), v_scale.data_ptr(), 0 if v_zero is None else v_zero.data_ptr(), position, bits,
        symmetric, clip, 0 if base is None else base.data_ptr(), order, block,
        0 if shift is None else shift.data_ptr(), _threads()))
    if code:
        _refuse("dfq_kv_append", code)


_kv_attention = Struct("=qqqqqqqqqqqqqqqqdqqqqqqqqqqqq").pack

def kv_attention(*, query: Tensor, dtype: int, batch: int, rows: int, heads: int, kv_heads: int, k_dim: int,
                 v_dim: int, k_packed: Tensor, k_scale: Tensor, k_zero: Tensor | None, v_packed: Tensor,
                 v_scale: Tensor, v_zero: Tensor | None, length: int, bits: int, scaling: float, base: Tensor | None,
                 order: int, block: int, first: Tensor | None, tree: Tensor | None, trees: int, k_sink: Tensor | None,
                 v_sink: Tensor | None, sinks: int, sink_start: Tensor | None, out: Tensor) -> None:
    """dfq_kv_attention: query [batch, rows, heads, k_dim] at the last `rows` (at most 64) of `length` positions ->
    out [batch, rows, heads, v_dim] = softmax(scaling q k^T) v. Row r of sequence b sees the positions from first[b,
    r] (null: 0) to length - rows - 1, and the new ones that tree [trees, rows, rows] shows it (null: those up to
    itself; trees 1 or batch). The `sinks` positions from sink_start[b] (null: 0) on are read from k_sink, v_sink
    [sinks, batch, kv_heads, dim], of the query's dtype and rotated like the stored keys. k_dim and v_dim at most
    512."""
    code = functions["dfq_kv_attention"](_kv_attention(query.data_ptr(), dtype, batch, rows, heads, kv_heads, k_dim,
        v_dim, k_packed.data_ptr(), k_scale.data_ptr(), 0 if k_zero is None else k_zero.data_ptr(),
        v_packed.data_ptr(), v_scale.data_ptr(), 0 if v_zero is None else v_zero.data_ptr(), length, bits, scaling,
        0 if base is None else base.data_ptr(), order, block, 0 if first is None else first.data_ptr(),
        0 if tree is None else tree.data_ptr(), trees, 0 if k_sink is None else k_sink.data_ptr(),
        0 if v_sink is None else v_sink.data_ptr(), sinks, 0 if sink_start is None else sink_start.data_ptr(),
        out.data_ptr(), _threads()))
    if code:
        _refuse("dfq_kv_attention", code)


_prompt_attention = Struct("=qqqqqqqqqqqqqqqqdqqqqqq").pack

def prompt_attention(*, query: Tensor, dtype: int, batch: int, rows: int, heads: int, kv_heads: int, k_dim: int,
                     v_dim: int, k_packed: Tensor, k_scale: Tensor, k_zero: Tensor | None, v_packed: Tensor,
                     v_scale: Tensor, v_zero: Tensor | None, length: int, bits: int, scaling: float, window: int,
                     k_sink: Tensor | None, v_sink: Tensor | None, sinks: int, out: Tensor) -> None:
    """dfq_prompt_attention: query [batch, rows, heads, k_dim], rotated like the stored keys, at the last `rows` (any
    number) of `length` positions -> out [batch, rows, heads, v_dim] = softmax(scaling q k^T) v. A row sees the last
    `window` positions up to its own (0: all). The first `sinks` positions are read from k_sink, v_sink [sinks, batch,
    kv_heads, dim], of the query's dtype. k_dim and v_dim at most 512."""
    code = functions["dfq_prompt_attention"](_prompt_attention(query.data_ptr(), dtype, batch, rows, heads, kv_heads,
        k_dim, v_dim, k_packed.data_ptr(), k_scale.data_ptr(), 0 if k_zero is None else k_zero.data_ptr(),
        v_packed.data_ptr(), v_scale.data_ptr(), 0 if v_zero is None else v_zero.data_ptr(), length, bits, scaling,
        window, 0 if k_sink is None else k_sink.data_ptr(), 0 if v_sink is None else v_sink.data_ptr(), sinks,
        out.data_ptr(), _threads()))
    if code:
        _refuse("dfq_prompt_attention", code)


_decode = Struct("=qqqqqqqqqqq").pack

def decode(*, model: Tensor, caches: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, batch: int, rows: int,
           position: int, out: Tensor, states: Tensor | None) -> None:
    """dfq_decode: All blocks for a few positions of a few sequences. hidden [batch, rows, hidden] of the model's
    dtype: the embeddings of the tokens at `position` and on -> out, of the same shape and dtype, after the final
    norm. caches [layers] have room for position + rows positions. cos, sin [rows, head_dim]. batch * rows at most 16.
    states [layers, batch, rows, hidden] of that dtype: the residual stream behind every block; null: not wanted."""
    code = functions["dfq_decode"](_decode(model.data_ptr(), caches.data_ptr(), hidden.data_ptr(), cos.data_ptr(),
        sin.data_ptr(), batch, rows, position, out.data_ptr(), 0 if states is None else states.data_ptr(),
        _threads()))
    if code:
        _refuse("dfq_decode", code)


_decode_tree = Struct("=qqqqqqqqqqq").pack

def decode_tree(*, model: Tensor, caches: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, rows: int, position: int,
                parents: Tensor, out: Tensor, states: Tensor | None) -> None:
    """dfq_decode_tree: dfq_decode for a tree of tokens of one sequence: parents [rows] (-1: none; else below the
    node's own number) in place of one behind the other, cos and sin of position + depth. Every row comes out as if
    its ancestors alone preceded it, to the last bit; the caches hold node i at position + i."""
    code = functions["dfq_decode_tree"](_decode_tree(model.data_ptr(), caches.data_ptr(), hidden.data_ptr(),
        cos.data_ptr(), sin.data_ptr(), rows, position, parents.data_ptr(), out.data_ptr(),
        0 if states is None else states.data_ptr(), _threads()))
    if code:
        _refuse("dfq_decode_tree", code)


_decode_batch = Struct("=qqqqqqqqq").pack

def decode_batch(*, model: Tensor, caches: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, positions: Tensor,
                 lines: int, out: Tensor) -> None:
    """dfq_decode_batch: dfq_decode for one position each of several sequences: hidden [lines, hidden], the embedding
    of the token at positions[i] of sequence i -> out, every line as if it were alone, to the last bit. caches [lines,
    layers] of one sequence each, with room for positions[i] + 1 positions; positions are at least the model's sinks.
    cos, sin [lines, head_dim]. lines at most 16."""
    code = functions["dfq_decode_batch"](_decode_batch(model.data_ptr(), caches.data_ptr(), hidden.data_ptr(),
        cos.data_ptr(), sin.data_ptr(), positions.data_ptr(), lines, out.data_ptr(), _threads()))
    if code:
        _refuse("dfq_decode_batch", code)


_prefill_before = Struct("=qqqqqqqqqqqq").pack

def prefill_before(*, model: Tensor, layer: int, caches: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, batch: int,
                   rows: int, position: int, rotate: int, query: Tensor) -> None:
    """dfq_prefill_before: The first half of one block for many positions (a prompt), before an attention that the
    caller computes: hidden [batch, rows, hidden] -> query [batch, rows, heads, head_dim], rotated by RoPE and, if
    `rotate`, by R3; keys and values go to the cache."""
    code = functions["dfq_prefill_before"](_prefill_before(model.data_ptr(), layer, caches.data_ptr(),
        hidden.data_ptr(), cos.data_ptr(), sin.data_ptr(), batch, rows, position, rotate, query.data_ptr(),
        _threads()))
    if code:
        _refuse("dfq_prefill_before", code)


_prefill_after = Struct("=qqqqqq").pack

def prefill_after(*, model: Tensor, layer: int, hidden: Tensor, mixed: Tensor, lines: int) -> None:
    """dfq_prefill_after: The second half: mixed [lines, heads * head_dim], the attention's result; hidden [lines,
    hidden] is updated in place."""
    code = functions["dfq_prefill_after"](_prefill_after(model.data_ptr(), layer, hidden.data_ptr(), mixed.data_ptr(),
        lines, _threads()))
    if code:
        _refuse("dfq_prefill_after", code)


_prefill_norm = Struct("=qqqq").pack

def prefill_norm(*, model: Tensor, x: Tensor, lines: int) -> None:
    """dfq_prefill_norm: x [lines, hidden] in place: the norm after the last block."""
    code = functions["dfq_prefill_norm"](_prefill_norm(model.data_ptr(), x.data_ptr(), lines, _threads()))
    if code:
        _refuse("dfq_prefill_norm", code)


_draft_pass = Struct("=qqqqqqqqqqqqqqqqqqqq").pack

def draft_pass(*, draft: Tensor, buffers: Tensor, x: Tensor, stream: Tensor | None, rows: int, fresh: Tensor | None,
               news: int, cos: Tensor, sin: Tensor, positions: Tensor, at: int, verified: int, tree: Tensor | None,
               cross_at: int, features: int, drafted: int, places: Tensor | None, cross_tree: Tensor | None,
               out: Tensor) -> None:
    """dfq_draft_pass: One pass of a draft over a few new slots: self-attention blocks, gated cross-attention to
    features, gated MLPs, residuals. x [rows, hidden], slots at `positions` [rows] (rows of cos and sin [..,
    head_dim]) -> out [rows, hidden], after the final norm if there is one. stream [rows, hidden]: where the residual
    stream of a draft with a side_norm begins (others begin at x), or what a block that joins adds; such drafts need
    it, for others null. rows and news at most 16, together with what is in the buffers within their capacity. Self
    blocks: the rows' keys go to buffer rows from `at` on; a slot sees the buffer rows below `verified`, and of those
    from there to at + rows the ones that tree [rows, at + rows - verified] shows it (null: all). Cross blocks: fresh
    [news, hidden] become keys from buffer row `cross_at` on. Row 0 is the null key, always visible; rows 1 ..
    features are those of positions 0 .. features - 1, visible to slots of larger positions; the `drafted` ones behind
    them have positions `places` and are visible where cross_tree [rows, drafted] says so (null: everywhere)."""
    code = functions["dfq_draft_pass"](_draft_pass(draft.data_ptr(), buffers.data_ptr(), x.data_ptr(),
        0 if stream is None else stream.data_ptr(), rows, 0 if fresh is None else fresh.data_ptr(), news,
        cos.data_ptr(), sin.data_ptr(), positions.data_ptr(), at, verified, 0 if tree is None else tree.data_ptr(),
        cross_at, features, drafted, 0 if places is None else places.data_ptr(),
        0 if cross_tree is None else cross_tree.data_ptr(), out.data_ptr(), _threads()))
    if code:
        _refuse("dfq_draft_pass", code)
