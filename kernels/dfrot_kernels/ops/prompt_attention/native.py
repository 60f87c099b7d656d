"""`prompt_attention` on the native library. Arguments are checked already."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels import bindings
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.ops.arguments import dense


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
    """`prompt_attention` of reference.py."""
    batch, rows, heads, k_dim = query.shape
    out = torch.empty((batch, rows, heads, v_dim), dtype=query.dtype)
    bindings.prompt_attention(
        query=query.contiguous(), dtype=DTYPE_CODES[query.dtype],
        batch=batch, rows=rows, heads=heads, kv_heads=k_packed.shape[2], k_dim=k_dim, v_dim=v_dim,
        k_packed=k_packed.contiguous(), k_scale=k_scale.contiguous(), k_zero=dense(k_zero),
        v_packed=v_packed.contiguous(), v_scale=v_scale.contiguous(), v_zero=dense(v_zero),
        length=length, bits=bits, scaling=scaling, window=window,
        k_sink=dense(k_sink), v_sink=dense(v_sink), sinks=k_sink.shape[0] if k_sink is not None else 0, out=out,
    )  # fmt: skip
    return out
