"""attention"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, H, n, D] over k, v [B, Hkv, m, D]; mask bool [n, m], True is visible, None is everything; or float
    [H, n, m], added to the scaled scores."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


Diagonal = tuple[Tensor, Tensor, Tensor]
"""Keys and values [B, Hkv, n, D], one per query row, and bool [B, n]: whether the row has it."""


def attend_with_diagonals(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    diagonals: Sequence[Diagonal],
    bias: Tensor | None = None,
    own_bias: Sequence[Tensor] = (),
) -> Tensor:
    """One softmax over a dense block k, v [B, Hkv, m, D] with mask [B or 1, n, m] and over single keys per row.

    The training-time test needs this: in each of its extra key blocks a row sees at most one key, so a dense mask
    of width n per step would be nearly all False. A row with nothing visible gives 0.

    bias [B or 1, H, n, m] and own_bias [H] per diagonal are added to the scaled scores.
    """
    batch, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    rows = q.reshape(batch, k.shape[1], groups, length, dim)  # [B, Hkv, G, n, D]
    scores = [(rows @ k.unsqueeze(2).transpose(-1, -2)).masked_fill(~mask[:, None, None], -torch.inf)]
    for own, _, there in diagonals:
        single = (rows * own.unsqueeze(2)).sum(-1, keepdim=True)
        scores.append(single.masked_fill(~there[:, None, None, :, None], -torch.inf))
    joined = torch.cat(scores, -1) if diagonals else scores[0]
    wide = joined.float() if joined.dtype in (torch.bfloat16, torch.float16) else joined
    wide = wide * dim**-0.5
    if bias is not None:
        ones = [one[:, None, None].expand(bias.shape[0], -1, length, 1) for one in own_bias]
        wide = wide + torch.cat([bias, *ones], -1).unflatten(1, (-1, groups))  # type: ignore[no-untyped-call]
    weights = wide.softmax(-1)
    weights = torch.where(torch.isfinite(weights), weights, 0.0).to(v.dtype)
    out = weights[..., : k.shape[2]] @ v.unsqueeze(2)
    for number, (_, own, _) in enumerate(diagonals):
        out = out + weights[..., k.shape[2] + number, None] * own.unsqueeze(2)
    return out.flatten(1, 2).reshape(batch, heads, length, dim)
