"""Schema, checks and shape of `kv_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops import checks
from dfrot_kernels.ops.kv_attention.reference import MAX_HEAD_DIM, MAX_ROWS
from dfrot_kernels.ops.kv_cache.schema import Store, check_heads, check_store

KV_ATTENTION = (
    "(Tensor query, Tensor k_packed, Tensor k_scale, Tensor? k_zero, Tensor v_packed, Tensor v_scale, "
    "Tensor? v_zero, int length, int v_dim, int bits, float scaling, Tensor? base, int block, Tensor? first, "
    "Tensor? tree, Tensor? k_sink, Tensor? v_sink, Tensor? sink_start) -> Tensor"
)


def _check_index(op: str, name: str, tensor: Tensor | None, kind: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor is not None:
        checks.dtype(op, name, tensor, (kind,))
        checks.shape(op, name, tensor, shape)


def check_attention(
    op: str,
    query: Tensor,
    stores: tuple[Store, Store],
    sinks: tuple[Tensor | None, Tensor | None],
    length: int,
    v_dim: int,
    bits: int,
) -> None:
    """Raises ValueError for heads, stores and exact positions of keys and values that attention over a packed cache
    refuses."""
    batch, _, heads, dim = query.shape
    k, v = stores
    if max(dim, v_dim) > MAX_HEAD_DIM or v_dim < 1:
        checks.fail(op, f"heads of {dim} and {v_dim} values, 1 to {MAX_HEAD_DIM} are needed")
    kv_heads = check_store(op, "k", k, batch, dim, bits, length)
    if kv_heads == 0 or heads % kv_heads:
        checks.fail(op, f"{heads} query heads are no multiple of {kv_heads} kv heads")
    if (v_heads := check_store(op, "v", v, batch, v_dim, bits, length)) != kv_heads:
        checks.fail(op, f"v_packed has {v_heads} heads, k_packed has {kv_heads}")
    k_sink, v_sink = sinks
    if (k_sink is None) != (v_sink is None):
        checks.fail(op, "one of k_sink and v_sink is missing: both or none are needed")
    if k_sink is not None and v_sink is not None:
        for name, sink, width in (("k_sink", k_sink, dim), ("v_sink", v_sink, v_dim)):
            _check_index(op, name, sink, query.dtype, (k_sink.shape[0], batch, kv_heads, width))


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
    batch, rows = query.shape[:2]
    if not 0 < rows <= min(length, MAX_ROWS):
        checks.fail(op, f"{rows} query positions at length {length}, 1 to {MAX_ROWS} of them are needed")
    stores = ((k_packed, k_scale, k_zero), (v_packed, v_scale, v_zero))
    check_attention(op, query, stores, (k_sink, v_sink), length, v_dim, bits)
    if base is not None:
        checks.blocks(op, query, base, block)
    _check_index(op, "first", first, torch.int64, (batch, rows))
    if tree is not None:
        _check_index(op, "tree", tree, torch.bool, ((batch, rows, rows) if tree.dim() == 3 else (rows, rows)))
    _check_index(op, "sink_start", sink_start, torch.int64, (batch,))


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
