"""Plain-torch reference of attention of a prompt over a packed cache (its layout: kv_cache/reference.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops.kv_attention.reference import kv_attention


def prompt_attention(
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
    window: int,
    k_sink: Tensor | None,
    v_sink: Tensor | None,
) -> Tensor:
    """query [B, S, heads, D], rotated like the stored keys, the last S of `length` positions -> [B, S, heads, v_dim] in
    its dtype: softmax(scaling q k^T) v in float32.

    A row sees the last `window` positions up to its own (0: all). k_sink, v_sink [N, B, kv_heads, dim]: exact keys
    (rotated) and values of the first N positions. heads is a multiple of kv_heads. The same as `kv_attention` for any
    number of rows; a sink that holds NaN or Inf may make whole rows NaN that see it.
    """
    batch, rows = query.shape[:2]
    past = length - rows
    new = torch.ones(rows, rows, dtype=torch.bool, device=query.device).tril()
    first = None
    if window:
        new = new.triu(1 - window)
        first = (torch.arange(past, length, device=query.device) + 1 - window).clamp(min=0).expand(batch, -1)
    where = (length, v_dim, bits, scaling, None, 0)
    stores = (k_packed, k_scale, k_zero, v_packed, v_scale, v_zero)
    return kv_attention(query, *stores, *where, first, new, k_sink, v_sink, None)
