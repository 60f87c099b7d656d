"""Schema, checks and shape of `prompt_attention`."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels.ops import checks
from dfrot_kernels.ops.kv_attention.reference import MAX_HEAD_DIM
from dfrot_kernels.ops.kv_cache.schema import check_heads, check_store

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
    batch, rows, heads, dim = query.shape
    if not 0 < rows <= length:
        checks.fail(op, f"{rows} query positions at length {length}, 1 to {length} of them are needed")
    if window < 0:
        checks.fail(op, f"window is {window}, 0 (all positions) or more is needed")
    if max(dim, v_dim) > MAX_HEAD_DIM or v_dim < 1:
        checks.fail(op, f"heads of {dim} and {v_dim} values, 1 to {MAX_HEAD_DIM} are needed")
    kv_heads = check_store(op, "k", (k_packed, k_scale, k_zero), batch, dim, bits, length)
    if kv_heads == 0 or heads % kv_heads:
        checks.fail(op, f"{heads} query heads are no multiple of {kv_heads} kv heads")
    if check_store(op, "v", (v_packed, v_scale, v_zero), batch, v_dim, bits, length) != kv_heads:
        checks.fail(op, f"v_packed has {v_packed.shape[2]} heads, k_packed has {kv_heads}")
    if (k_sink is None) != (v_sink is None):
        checks.fail(op, "one of k_sink and v_sink is missing: both or none are needed")
    if k_sink is not None and v_sink is not None:
        for name, sink, width in (("k_sink", k_sink, dim), ("v_sink", v_sink, v_dim)):
            checks.dtype(op, name, sink, (query.dtype,))
            checks.shape(op, name, sink, (k_sink.shape[0], batch, kv_heads, width))


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
