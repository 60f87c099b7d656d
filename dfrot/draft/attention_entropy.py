"""attention_entropy"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.generation.attention_scores import ROWS_AT_A_TIME, capped

SCORES_AT_A_TIME = 1 << 20  # of a block of rows, float32: long texts take fewer rows at a time


HIDDEN = -1e30  # as a score: finite, so that it times its weight of 0 is 0


def row_entropy(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    rows_at_a_time: int = ROWS_AT_A_TIME,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention entropy in nats, averaged over heads, and how many keys each row sees: both float32 [B, Q].

    query [B, H, Q, D], key [B, Hkv, K, D] as attention gets them. mask: bool (True is visible) or additive,
    [B or 1, H or 1, Q, K]; None means everything, or causal at offset K - Q. A row that sees nothing has entropy 0.
    cap: of the scores, as `capped` takes it.
    """
    batch, heads, length, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, length, dim)
    transposed = key.float().transpose(-1, -2)
    entropy = query.new_empty((batch, length), dtype=torch.float32)
    visible = torch.empty_like(entropy)
    places = torch.arange(keys, device=query.device)
    many = max(1, min(rows_at_a_time, SCORES_AT_A_TIME // (batch * heads * keys)))
    for begin in range(0, length, many):
        end = min(begin + many, length)
        reach = end + keys - length if mask is None and causal else keys  # no row here sees further
        rows = grouped[..., begin:end, :].float().flatten(2, 3) @ transposed[..., :reach]
        scores = capped(rows.view(batch, heads, end - begin, reach).mul_(scale), cap)
        hidden: Tensor | None = None
        if mask is not None:
            part = mask[..., begin:end, :keys]
            if part.dtype == torch.bool:
                hidden = ~part
            else:  # an additive mask hides with a very negative number
                hidden = part <= torch.finfo(part.dtype).min / 2
                scores = scores + part.float().masked_fill(hidden, 0.0)
        elif causal:
            hidden = places[:reach] > torch.arange(begin, end, device=query.device)[:, None] + keys - length
        count = torch.full((1, 1, end - begin), float(reach), device=query.device)
        if hidden is not None:
            scores.masked_fill_(hidden, HIDDEN)
            count = (~hidden).sum(-1).float().view(*(1,) * (4 - hidden.dim()), *hidden.shape[:-1])
        scores.sub_(scores.amax(-1, keepdim=True))
        weights = scores.exp()
        mass = weights.sum(-1)
        found = mass.log() - scores.mul_(weights).sum(-1) / mass  # of log p = score - log(mass), the largest score at 0
        entropy[:, begin:end] = torch.where(count > 0, found, 0.0).mean(1)
        visible[:, begin:end] = count.mean(1)
    return entropy, visible
