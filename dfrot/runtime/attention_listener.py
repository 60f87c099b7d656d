"""An attention function that shows queries and keys to a listener, behind RoPE and any q/k norm; it computes as usual.

What attention pays attention to can only be read off the tensors that meet in the product; recomputing them outside
would mean knowing every architecture's norms and position encodings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

NAME = "dfq-watch"
Listener = Callable[[Tensor, Tensor, Tensor, "Tensor | None", float], None]
"""(query [B, heads, S, head_dim], key, value [B, kv heads, S, head_dim], mask or None for plain causal, scale)"""


def watched_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """sdpa, after the module's listener has seen its arguments."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    listener: Listener | None = getattr(module, "dfq_listener", None)
    if listener is not None:
        scale = kwargs.get("scaling")
        listener(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scale is None else float(scale))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


def listen(attention: nn.Module, listener: Listener) -> None:
    """Let `listener` see every call of one attention module; its config must not be shared with other blocks."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, watched_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    attention.dfq_listener = listener  # type: ignore[assignment]
    attention.config._attn_implementation = NAME  # type: ignore[union-attr]
