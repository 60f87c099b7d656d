"""Attention of many blocks of draft tokens in one training pass."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, context_k: Tensor, context_v: Tensor, visible: Tensor, size: int
) -> Tensor:
    """One softmax per row over the context that its block sees and over its whole block.

    Args:
        q: [B, H, blocks * size, D].
        k, v: [B, Hkv, blocks * size, D], of the blocks.
        context_k, context_v: [B, Hkv, S, D].
        visible: bool [B, blocks, S].
        size: rows of a block.

    Returns:
        [B, H, blocks * size, D].
    """
    batch, heads, rows, dim = q.shape
    kv_heads, length = k.shape[1], context_k.shape[2]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads, rows, dim)
    context = grouped @ context_k[:, :, None].transpose(-1, -2)  # [B, Hkv, G, rows, S]
    context = context.masked_fill(~visible.repeat_interleave(size, 1)[:, None, None], -torch.inf)
    of_blocks = (batch, kv_heads, -1, rows // size, size, dim)
    blocks, block_k, block_v = (x.reshape(of_blocks) for x in (grouped, k, v))  # k, v: [B, Hkv, 1, blocks, size, D]
    own = (blocks @ block_k.transpose(-1, -2)).flatten(3, 4)  # [B, Hkv, G, rows, size]
    scores = torch.cat([context, own], -1)
    wide = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    weights = (wide * dim**-0.5).softmax(-1).to(v.dtype)
    out = weights[..., :length] @ context_v[:, :, None]
    own_weights = weights[..., length:].reshape(*blocks.shape[:-1], size)
    mixed: Tensor = out + (own_weights @ block_v).flatten(3, 4)
    return mixed.reshape(batch, heads, rows, dim)
