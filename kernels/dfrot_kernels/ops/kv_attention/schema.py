"""Schema, checks and shape of `kv_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops import checks
from dfrot_kernels.ops.kv_attention.reference import MAX_HEAD_DIM, MAX_ROWS
from dfrot_kernels.ops.kv_cache.schema import check_heads, check_store

KV_ATTENTION = (
    "(Tensor query, Tensor k_packed, Tensor k_scale, Tensor? k_zero, Tensor v_packed, Tensor v_scale, "
    "Tensor? v_zero, int length, int v_dim, int bits, float scaling, Tensor? base, int block, Tensor? first, "
    "Tensor? tree, Tensor? k_sink, Tensor? v_sink, Tensor? sink_start) -> Tensor"
)


def _check_index(op: str, name: str, tensor: Tensor | None, kind: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor is not None:
        checks.dtype(op, name, tensor, (kind,))
        checks.shape(op, name, tensor, shape)


def check_kv_attention(
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
    base: Tensor | None,
    block: int,
    first: Tensor | None,
    tree: Tensor | None,
    k_sink: Tensor | None,
    v_sink: Tensor | None,
    sink_start: Tensor | None,
) -> None:
    """Raises ValueError for arguments that `kv_attention` refuses."""
    op = "kv_attention"
    checks.bits_ok(op, bits)
    check_heads(op, "query", query)
    batch, rows, heads, dim = query.shape
    if not 0 < rows <= min(length, MAX_ROWS):
        checks.fail(op, f"{rows} query positions at length {length}, 1 to {MAX_ROWS} of them are needed")
    if max(dim, v_dim) > MAX_HEAD_DIM or v_dim < 1:
        checks.fail(op, f"heads of {dim} and {v_dim} values, 1 to {MAX_HEAD_DIM} are needed")
    kv_heads = check_store(op, "k", (k_packed, k_scale, k_zero), batch, dim, bits, length)
    if kv_heads == 0 or heads % kv_heads:
        checks.fail(op, f"{heads} query heads are no multiple of {kv_heads} kv heads")
    if check_store(op, "v", (v_packed, v_scale, v_zero), batch, v_dim, bits, length) != kv_heads:
        checks.fail(op, f"v_packed has {v_packed.shape[2]} heads, k_packed has {kv_heads}")
    if base is not None:
        checks.blocks(op, query, base, block)
    _check_index(op, "first", first, torch.int64, (batch, rows))
    if tree is not None:
        _check_index(op, "tree", tree, torch.bool, ((batch, rows, rows) if tree.dim() == 3 else (rows, rows)))
    if (k_sink is None) != (v_sink is None):
        checks.fail(op, "one of k_sink and v_sink is missing: both or none are needed")
    _check_index(op, "sink_start", sink_start, torch.int64, (batch,))
    if k_sink is not None and v_sink is not None:
        _check_index(op, "k_sink", k_sink, query.dtype, (k_sink.shape[0], batch, kv_heads, dim))
        _check_index(op, "v_sink", v_sink, query.dtype, (k_sink.shape[0], batch, kv_heads, v_dim))


def kv_attention_shape(
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
    base: Tensor | None,
    block: int,
    first: Tensor | None,
    tree: Tensor | None,
    k_sink: Tensor | None,
    v_sink: Tensor | None,
    sink_start: Tensor | None,
) -> Tensor:
    """Empty outputs of `kv_attention`."""
    return query.new_empty(*query.shape[:3], v_dim)
