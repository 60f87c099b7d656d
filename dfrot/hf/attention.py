"""The attention function `dfq`: R3 on the queries, then PyTorch's scaled dot product attention.

The cache layer rotates the keys before it quantizes them; the same orthogonal map on the queries cancels it in
q k^T (QuaRot's R3). It acts after RoPE and after any q/k norm, where no weight could absorb it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.rotation.online import HadamardSpec

NAME = "dfq"


def dfq_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """query [B, heads, S, head_dim] is rotated by the module's R3, if any; the rest is sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    base = getattr(module, "r3_base", None)
    if base is not None:
        query = torch.ops.dfq.hadamard(query, base, module.r3_block)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


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
