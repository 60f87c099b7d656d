"""Attention entropy of every row, from queries and keys, a block of rows at a time.

No [heads, S, S] tensor exists at any time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.generation.attention_scores import ROWS_AT_A_TIME, capped

SCORES_AT_A_TIME = 1 << 20  # float32 scores of a block of rows: long texts take fewer rows at a time
HIDDEN = -1e30  # the score of a masked key: finite, so that times its weight of 0 it is 0


def row_entropy(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    rows_at_a_time: int = ROWS_AT_A_TIME,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention entropy in nats, averaged over heads, and the number of visible keys, of every row.

    Args:
        query: [B, H, Q, D], as attention gets it.
        key: [B, Hkv, K, D].
        mask: bool (True is visible) or additive, [B or 1, H or 1, Q, K]; None for everything, or causal at offset
            K - Q.
        scale: of the scores.
        causal: whether a missing mask means causal.
        rows_at_a_time: rows in memory at once.
        cap: soft cap of the scores (see `capped`).

    Returns:
        Two tensors float32 [B, Q]. A row that sees nothing has entropy 0.
    """
    batch, heads, length, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, length, dim)
    transposed = key.float().transpose(-1, -2)
    entropy = query.new_empty((batch, length), dtype=torch.float32)
    visible = torch.empty_like(entropy)
    block = max(1, min(rows_at_a_time, SCORES_AT_A_TIME // (batch * heads * keys)))
    for begin in range(0, length, block):
        end = min(begin + block, length)
        reach = end + keys - length if mask is None and causal else keys  # no row of the block sees further
        products = grouped[..., begin:end, :].float().flatten(2, 3) @ transposed[..., :reach]
        scores = capped(products.view(batch, heads, end - begin, reach).mul_(scale), cap)
        scores, hidden = _masked(scores, mask, causal, begin, keys - length)
        count = torch.full((1, 1, end - begin), float(reach), device=query.device)
        if hidden is not None:
            scores.masked_fill_(hidden, HIDDEN)
            count = (~hidden).sum(-1).float().view(*(1,) * (4 - hidden.dim()), *hidden.shape[:-1])
        scores.sub_(scores.amax(-1, keepdim=True))
        weights = scores.exp()
        mass = weights.sum(-1)
        # -sum p log p with log p = score - log(mass)
        block_entropy = mass.log() - scores.mul_(weights).sum(-1) / mass
        entropy[:, begin:end] = torch.where(count > 0, block_entropy, 0.0).mean(1)
        visible[:, begin:end] = count.mean(1)
    return entropy, visible


def _masked(scores: Tensor, mask: Tensor | None, causal: bool, begin: int, offset: int) -> tuple[Tensor, Tensor | None]:
    """Scores [B, H, rows, reach] of the rows from `begin` on with an additive mask added, and which of them are hidden
    (bool, broadcastable), None for none. offset: keys before the first row."""
    rows, reach = scores.shape[2:]
    if mask is not None:
        part = mask[..., begin : begin + rows, :reach]
        if part.dtype == torch.bool:
            return scores, ~part
        hidden = part <= torch.finfo(part.dtype).min / 2  # an additive mask hides with a very negative number
        return scores + part.float().masked_fill(hidden, 0.0), hidden
    if causal:
        last_visible = torch.arange(begin, begin + rows, device=scores.device)[:, None] + offset
        return scores, torch.arange(reach, device=scores.device) > last_visible
    return scores, None
