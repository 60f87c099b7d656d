"""Plain-torch reference of attention on a packed cache (its layout: kv_cache/reference.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops.kv_cache.reference import kv_dequantize, rotated

MAX_ROWS = 64  # most query positions of one call
MAX_HEAD_DIM = 512  # most values of a head


def visible(
    batch: int, rows: int, length: int, first: Tensor | None, tree: Tensor | None, device: torch.device
) -> Tensor:
    """bool [B, rows, length]: cached position j < length - rows is seen from first[b, r] on, new position by `tree`."""
    past = length - rows
    positions = torch.arange(past, device=device)
    start = torch.zeros(batch, rows, dtype=torch.int64, device=device) if first is None else first
    new = torch.ones(rows, rows, dtype=torch.bool, device=device).tril() if tree is None else tree
    new = new.expand(batch, rows, rows) if new.dim() == 2 else new.expand(batch, -1, -1)
    return torch.cat((positions >= start[:, :, None], new), dim=-1)


def _stored(packed: Tensor, scale: Tensor, zero: Tensor | None, length: int, bits: int, dim: int) -> Tensor:
    zero = None if zero is None else zero[:length]
    return kv_dequantize(packed[:length], scale[:length], zero, dim, bits, torch.float32)


def _with_sinks(rows: Tensor, sink: Tensor | None, start: Tensor | None) -> Tensor:
    """rows [length, B, H, D] with sinks [N, B, H, D] at positions start[b] .. start[b] + N where they exist."""
    if sink is None:
        return rows
    batch = torch.arange(rows.shape[1], device=rows.device)
    for i in range(sink.shape[0]):
        position = torch.full_like(batch, i) if start is None else start + i
        held = (position >= 0) & (position < rows.shape[0])
        rows[position[held], batch[held]] = sink[i, held].float()
    return rows


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
    """query [B, S, heads, D], the last S (at most 64) of `length` positions -> [B, S, heads, v_dim] in its dtype:
    softmax(scaling q k^T) v in float32 over what each row sees.

    Row r of sequence b sees the cached positions from first[b, r] (int64 [B, S]; None: 0) to length - S - 1, and the
    new ones that tree[r] shows it (bool [S, S] or [B, S, S]; None: those up to itself). k_sink, v_sink [N, B, kv_heads,
    dim]: exact keys (rotated) and values of the positions sink_start[b] (int64 [B]; None: 0) .. + N. heads is a
    multiple of kv_heads (GQA: consecutive heads share one). A row that sees nothing is zero; NaN in a key or value
    reaches the rows that see it and no other.
    """
    batch, rows, heads, dim = query.shape
    keys = _with_sinks(_stored(k_packed, k_scale, k_zero, length, bits, dim), k_sink, sink_start)
    values = _with_sinks(_stored(v_packed, v_scale, v_zero, length, bits, v_dim), v_sink, sink_start)
    group = heads // keys.shape[2]
    q = rotated(query, base, block).transpose(1, 2)  # [B, heads, S, D]
    k, v = (x.permute(1, 2, 0, 3).repeat_interleave(group, dim=1) for x in (keys, values))
    shown = visible(batch, rows, length, first, tree, query.device)[:, None]
    scores = torch.where(shown, q @ k.mT * scaling, -torch.inf)
    weights = torch.where(shown.any(-1, keepdim=True), scores.softmax(-1), 0.0)
    # a weight of zero does not silence NaN: leave out what nobody sees row by row only where there is any
    bad = ~v.isfinite()
    out = weights @ torch.where(bad, 0.0, v)
    if bool(bad.any()):
        reached = shown.to(v.dtype).expand(batch, heads, rows, length) @ bad.to(v.dtype)
        out = torch.where(reached > 0, torch.nan, out)
    return out.transpose(1, 2).to(query.dtype).contiguous()
