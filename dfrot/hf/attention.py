"""The attention function `dfq`: R3 on the queries, then attention on the packed cache (a few query rows) or PyTorch's
scaled dot product attention.

The cache layer rotates the keys before it quantizes them; the same orthogonal map on the queries cancels it in
q k^T (QuaRot's R3). It acts after RoPE and after any q/k norm, where no weight could absorb it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.hf.cache import CacheView
from dfrot.hf.visible import of_mask
from dfrot.rotation.online import HadamardSpec
from dfrot_kernels.ref_kv import DIM as MAX_DIM

NAME = "dfq"


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
