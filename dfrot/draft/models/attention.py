"""Attention of a draft: over its cache in decoding, and over a dense block and single keys in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, H, n, D] over k, v [B, Hkv, m, D] -> [B, H, n, D]. mask: bool [n, m] (True is visible), float [H, n, m]
    added to the scaled scores, or None for everything."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


Diagonal = tuple[Tensor, Tensor, Tensor]
"""Keys and values [B, Hkv, n, D], one per query row, and bool [B, n]: whether the row has one."""


def attend_with_diagonals(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    diagonals: Sequence[Diagonal],
    bias: Tensor | None = None,
    diagonal_biases: Sequence[Tensor] = (),
) -> Tensor:
    """One softmax over a dense block of keys and over single keys per row.

    The training-time test needs this: in each of its extra key blocks a row sees at most one key, so that a dense mask
    of width n per step would be nearly all False. A row that sees nothing gives 0.

    Args:
        q: [B, H, n, D].
        k, v: [B, Hkv, m, D], the dense block.
        mask: bool [B or 1, n, m].
        diagonals: the single keys.
        bias: [B or 1, H, n, m], added to the scaled scores of the dense block.
        diagonal_biases: [H] per diagonal, added to its scaled scores.

    Returns:
        [B, H, n, D].
    """
    batch, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    rows = q.reshape(batch, k.shape[1], groups, length, dim)  # [B, Hkv, G, n, D]
    scores = [(rows @ k.unsqueeze(2).transpose(-1, -2)).masked_fill(~mask[:, None, None], -torch.inf)]
    for keys, _, exists in diagonals:
        single = (rows * keys.unsqueeze(2)).sum(-1, keepdim=True)
        scores.append(single.masked_fill(~exists[:, None, None, :, None], -torch.inf))
    joined = torch.cat(scores, -1) if diagonals else scores[0]
    wide = joined.float() if joined.dtype in (torch.bfloat16, torch.float16) else joined
    wide = wide * dim**-0.5
    if bias is not None:
        columns = [single[:, None, None].expand(bias.shape[0], -1, length, 1) for single in diagonal_biases]
        wide = wide + torch.cat([bias, *columns], -1).unflatten(1, (-1, groups))  # type: ignore[no-untyped-call]
    weights = wide.softmax(-1)
    weights = torch.where(torch.isfinite(weights), weights, 0.0).to(v.dtype)
    out = weights[..., : k.shape[2]] @ v.unsqueeze(2)
    for index, (_, values, _) in enumerate(diagonals):
        out = out + weights[..., k.shape[2] + index, None] * values.unsqueeze(2)
    return out.flatten(1, 2).reshape(batch, heads, length, dim)
