"""The attention function `dfq`: R3 on the queries, then attention on the packed cache (a few query rows), PyTorch's
scaled dot product attention, or one of our own where scores are capped.

The cache layer rotates the keys before it quantizes them; the same orthogonal map on the queries cancels it in
q k^T (QuaRot's R3). It acts after RoPE and after any q/k norm, where no weight could absorb it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.compat.masks import of_mask
from dfrot.errors import UnsupportedError
from dfrot.rotation.online import HadamardSpec
from dfrot.runtime.kv_cache import CacheView
from dfrot_kernels.ref_kv import DIM as MAX_DIM

NAME = "dfq"
SCORES = 1 << 26  # of capped attention alive at once, 4 bytes each


def dfq_attention(
    module: nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """query [B, heads, S, head_dim] is rotated by the module's R3, if any. key and value: tensors [B, kv_heads, length,
    head_dim], or the CacheView that the cache layer returned."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if isinstance(key, CacheView):
        out = _on_packed(query, key, attention_mask, kwargs)
        if out is not None:
            return out, None
        key, value = key.tensors()
    base = getattr(module, "r3_base", None)
    if base is not None:
        query = torch.ops.dfq.hadamard(query, base, module.r3_block)
    if kwargs.get("softcap") is not None:
        return _capped(query, key, value, attention_mask, kwargs), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


def _on_packed(query: Tensor, view: CacheView, mask: Tensor | None, options: dict[str, Any]) -> Tensor | None:
    """Attention that reads the packed cache; None where PyTorch's must serve: a mask of another form, terms that the
    kernel does not know, a head wider than it takes, a backward pass."""
    if query.requires_grad or query.dtype != view.layer.dtype or query.shape[-1] > MAX_DIM:
        return None
    if options.get("dropout") or options.get("position_bias") is not None or options.get("softcap") is not None:
        return None
    seen = of_mask(mask, query.shape[2], view.length)
    if seen is None:
        return None
    scaling = options.get("scaling")
    return view.attend(query, query.shape[-1] ** -0.5 if scaling is None else scaling, *seen)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Attention whose scores x become cap * tanh(x / cap) (Gemma 2), which PyTorch's fused one cannot do.

    query [B, heads, S, D], key and value [B, kv_heads, length, D], mask bool or additive, [B or 1, 1, S, length]; None:
    causal. Returns [B, S, heads, D]. A few rows at a time: no more than SCORES scores are alive."""
    if options.get("dropout") or options.get("position_bias") is not None:
        raise UnsupportedError("attention with capped scores knows neither dropout nor a position bias")
    batch, heads, rows, dim = query.shape
    cap, scaling = float(options["softcap"]), options.get("scaling")
    scaling = dim**-0.5 if scaling is None else scaling
    length = key.shape[2]
    if mask is None and rows > 1:
        at = torch.arange(length - rows, length, device=query.device)
        mask = (torch.arange(length, device=query.device) <= at[:, None])[None, None]
    key, value = key.transpose(-1, -2).unsqueeze(2), value.unsqueeze(2)  # [B, kv_heads, 1, ...]
    query = query.reshape(batch, key.shape[1], -1, rows, dim)  # [B, kv_heads, heads of a group, S, D]
    out = query.new_empty(batch, rows, heads, dim)
    step = max(1, SCORES // (batch * heads * length))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        product = torch.matmul(query[..., part, :], key)
        scores = torch.tanh(product.to(torch.promote_types(product.dtype, torch.float32)) * (scaling / cap)) * cap
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask[:, :, None, part], -torch.inf)
        elif mask is not None:
            scores = scores + mask[:, :, None, part]
        weights = torch.nan_to_num(scores.softmax(-1)).to(value.dtype)  # a padded row sees nothing
        out[:, part] = torch.matmul(weights, value).flatten(1, 2).transpose(1, 2)
    return out


def unchanged() -> bool:
    """Whether `dfq` in transformers' table still means the function of this module: nobody stands in between."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return bool(ALL_ATTENTION_FUNCTIONS[NAME] is dfq_attention)


def register() -> None:
    """Make `dfq` known to transformers' attention and mask tables. Calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, dfq_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def rotate_queries(attention: nn.Module, spec: HadamardSpec) -> None:
    """Give one attention module its R3."""
    attention.register_buffer("r3_base", spec.base(), persistent=False)
    attention.r3_block = spec.block  # type: ignore[assignment]
