"""Schema, checks and shape of `prompt_attention`."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels.ops import checks
from dfrot_kernels.ops.kv_attention.schema import check_attention
from dfrot_kernels.ops.kv_cache.schema import check_heads

PROMPT_ATTENTION = (
    "(Tensor query, Tensor k_packed, Tensor k_scale, Tensor? k_zero, Tensor v_packed, Tensor v_scale, "
    "Tensor? v_zero, int length, int v_dim, int bits, float scaling, int window, Tensor? k_sink, Tensor? v_sink) "
    "-> Tensor"
)


def check_prompt_attention(
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
) -> None:
    """Raises ValueError for arguments that `prompt_attention` refuses."""
    op = "prompt_attention"
    checks.bits_ok(op, bits)
    check_heads(op, "query", query)
    rows = query.shape[1]
    if not 0 < rows <= length:
        checks.fail(op, f"{rows} query positions at length {length}, 1 to {length} of them are needed")
    if window < 0:
        checks.fail(op, f"window is {window}, 0 (all positions) or more is needed")
    stores = ((k_packed, k_scale, k_zero), (v_packed, v_scale, v_zero))
    check_attention(op, query, stores, (k_sink, v_sink), length, v_dim, bits)


def prompt_attention_shape(
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
    """Empty outputs of `prompt_attention`."""
    return query.new_empty(*query.shape[:3], v_dim)
