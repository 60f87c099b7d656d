"""The attention function `dfq`: R3 on the queries, then attention over the packed cache, if there are few query rows,
PyTorch's scaled dot product attention, or our own where scores are capped.

The cache layer rotates the keys before it quantizes them; the same orthogonal map on the queries cancels it in q k^T
(R3 of QuaRot, arXiv 2404.00456). It acts after RoPE and after any q/k norm, where no weight could absorb it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.compat import attention as table
from dfrot.compat.masks import visible_positions
from dfrot.errors import UnsupportedError
from dfrot.rotation.online import HadamardSpec
from dfrot.runtime.kv_cache import CacheView
from dfrot_kernels.ops.kv_attention.reference import MAX_HEAD_DIM as MAX_DIM

NAME = "dfq"
MAX_SCORES = 1 << 26  # scores of capped attention in memory at a time, 4 bytes each


def dfq_attention(
    module: nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer, called by transformers (see dfrot.compat.attention.AttentionFunction).

    Args:
        module: the attention module; its R3, if any, rotates the queries.
        query: [B, heads, S, head_dim].
        key, value: [B, kv_heads, length, head_dim], or the CacheView that the cache layer returned.
        attention_mask: [B or 1, 1, S, length], bool or additive; None: causal.

    Returns [B, S, heads, head_dim] and no attention weights.
    """
    if kwargs.get("softcap") is not None:
        return attend(module, query, key, value, attention_mask, _capped, **kwargs)
    return attend(module, query, key, value, attention_mask, table.sdpa, **kwargs)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    mask: Tensor | None,
    dense: table.AttentionFunction,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`dfq_attention` of a module, whose R3, if any, rotates the queries. dense: computes attention over dense keys and
    values; the packed cache is read in place where it can be."""
    if isinstance(key, CacheView):
        out = _packed_attention(query, key, mask, options)
        if out is not None:
            return out, None
        key, value = key.tensors()
    base = getattr(module, "r3_base", None)
    if base is not None:
        query = torch.ops.dfq.hadamard(query, base, module.r3_block)
    return dense(module, query, key, value, mask, **options)


def _capped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    return _capped_attention(query, key, value, mask, options), None


def _packed_attention(query: Tensor, view: CacheView, mask: Tensor | None, options: dict[str, Any]) -> Tensor | None:
    """Attention over the packed cache. None where PyTorch's has to compute it: a mask of another form, options that the
    kernel does not have, a head wider than it takes, a backward pass."""
    if query.requires_grad or query.dtype != view.layer.dtype or query.shape[-1] > MAX_DIM:
        return None
    if options.get("dropout") or options.get("position_bias") is not None or options.get("softcap") is not None:
        return None
    visible = visible_positions(mask, query.shape[2], view.length)
    if visible is None:
        return None
    scaling = options.get("scaling")
    return view.attend(query, query.shape[-1] ** -0.5 if scaling is None else scaling, *visible)


def _capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """Attention whose scores x become cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118), which PyTorch's cannot do.

    query [B, heads, S, D], key and value [B, kv_heads, length, D], mask bool or additive, [B or 1, 1, S, length]; None:
    causal. Returns [B, S, heads, D]. Rows are computed in blocks of at most MAX_SCORES scores."""
    if options.get("dropout") or options.get("position_bias") is not None:
        raise UnsupportedError("attention with capped scores supports neither dropout nor a position bias")
    batch, heads, rows, dim = query.shape
    cap, scaling = float(options["softcap"]), options.get("scaling")
    scaling = dim**-0.5 if scaling is None else scaling
    length = key.shape[2]
    if mask is None and rows > 1:
        positions = torch.arange(length - rows, length, device=query.device)
        mask = (torch.arange(length, device=query.device) <= positions[:, None])[None, None]
    key, value = key.transpose(-1, -2).unsqueeze(2), value.unsqueeze(2)  # [B, kv_heads, 1, ...]
    query = query.reshape(batch, key.shape[1], -1, rows, dim)  # [B, kv_heads, heads of a group, S, D]
    out = query.new_empty(batch, rows, heads, dim)
    step = max(1, MAX_SCORES // (batch * heads * length))
    for begin in range(0, rows, step):
        block = slice(begin, begin + step)
        product = torch.matmul(query[..., block, :], key)
        scores = torch.tanh(product.to(torch.promote_types(product.dtype, torch.float32)) * (scaling / cap)) * cap
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask[:, :, None, block], -torch.inf)
        elif mask is not None:
            scores = scores + mask[:, :, None, block]
        weights = torch.nan_to_num(scores.softmax(-1)).to(value.dtype)  # a row of padding sees nothing: 0, not NaN
        out[:, block] = torch.matmul(weights, value).flatten(1, 2).transpose(1, 2)
    return out


def is_wrapped() -> bool:
    """Whether something observes or replaces `dfq_attention` now (dfrot/runtime/attention_hooks.py)."""
    current = table.registered(NAME)
    return current is not None and current is not dfq_attention


def register_attention() -> None:
    """Make `dfq` known to transformers. Calling it again changes nothing."""
    table.register(NAME, dfq_attention)


def rotate_queries(attention: nn.Module, spec: HadamardSpec) -> None:
    """Let one attention module rotate its queries by R3."""
    attention.register_buffer("r3_base", spec.base(), persistent=False)
    attention.r3_block = spec.block  # type: ignore[assignment]
