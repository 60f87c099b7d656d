"""Attention over dense keys and values, computed by PyTorch's fused function as transformers calls it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

MAX_GROUPED_DIM = 256  # widest head for which PyTorch's fused function reads shared key heads in place


def dense_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention of query [B, heads, S, D] over key and value [B, kv_heads, length, D] -> ([B, S, heads, D], None).

    mask: bool [B or 1, 1, S, length]; None: causal, S being the length, or a single row. The bits are those that
    transformers computes for the same call: grouped heads are read in place, packed or repeated as it does it. module:
    not used; attention functions have it."""
    group, rows, grouped = query.shape[1] // key.shape[1], query.shape[2], False
    heads = query.shape[1]
    if group > 1:
        if mask is None and key.shape[-1] == value.shape[-1] <= MAX_GROUPED_DIM:
            grouped = True
        elif rows == 1:
            query = query.reshape(query.shape[0], key.shape[1], group, query.shape[-1])
        else:
            key, value = (states.repeat_interleave(group, dim=1) for states in (key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, is_causal=mask is None and rows > 1, enable_gqa=grouped
    )
    out = out.reshape(out.shape[0], heads, rows, out.shape[-1])
    return out.transpose(1, 2).contiguous(), None
