"""The ops on a packed cache: append and decode attention. Conventions and docstrings are in ref_kv.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot_kernels import checks, ops, ref_kv
from dfrot_kernels.native import call

_TURN = "Tensor? base, int block"
SCHEMAS = {
    "kv_append": "(Tensor key, Tensor value, Tensor(a!) k_packed, Tensor(b!) k_scale, Tensor(c!)? k_zero, "
    "Tensor(d!) v_packed, Tensor(e!) v_scale, Tensor(f!)? v_zero, int position, int bits, float clip, "
    f"{_TURN}) -> ()",
    "kv_attention": "(Tensor query, Tensor k_packed, Tensor k_scale, Tensor? k_zero, Tensor v_packed, Tensor v_scale, "
    f"Tensor? v_zero, int length, int v_dim, int bits, float scaling, {_TURN}, Tensor? first, Tensor? tree, "
    "Tensor? k_sink, Tensor? v_sink, Tensor? sink_start) -> Tensor",
}
_Stores = tuple[Tensor, Tensor, Tensor | None]


def _check_store(op: str, name: str, store: _Stores, batch: int, dim: int, bits: int, length: int) -> int:
    """One of the two stores; returns its number of heads."""
    packed, scale, zero = store
    checks.dtype(op, f"{name}_packed", packed, (torch.uint8,))
    if packed.dim() != 4 or packed.shape[1] != batch or packed.shape[0] < length:
        needed = f"[{length} or more positions, {batch}, heads, bytes] is needed"
        checks.fail(op, f"{name}_packed has shape {tuple(packed.shape)}, {needed}")
    checks.row_bytes(op, packed, dim, bits)
    for part, tensor, kind in (("scale", scale, torch.float16), ("zero", zero, torch.uint8)):
        if tensor is not None:
            checks.dtype(op, f"{name}_{part}", tensor, (kind,))
            checks.shape(op, f"{name}_{part}", tensor, tuple(packed.shape[:-1]))
    return packed.shape[2]


def _rows4(op: str, name: str, x: Tensor) -> None:
    checks.dtype(op, name, x, checks.FLOATS)
    if x.dim() != 4 or x.shape[3] == 0:
        checks.fail(op, f"{name} has shape {tuple(x.shape)}, [batch, positions, heads, head_dim] is needed")


def check_kv_append(
    key: Tensor,
    value: Tensor,
    k_packed: Tensor,
    k_scale: Tensor,
    k_zero: Tensor | None,
    v_packed: Tensor,
    v_scale: Tensor,
    v_zero: Tensor | None,
    position: int,
    bits: int,
    clip: float,
    base: Tensor | None,
    block: int,
) -> None:
    op = "kv_append"
    checks.bits_ok(op, bits)
    checks.clip_ok(op, clip)
    _rows4(op, "key", key)
    _rows4(op, "value", value)
    checks.dtype(op, "value", value, (key.dtype,))
    checks.shape(op, "value", value, (*key.shape[:3], value.shape[3]))
    if position < 0:
        checks.fail(op, f"position is {position}, 0 or more is needed")
    if (k_zero is None) != (v_zero is None):
        checks.fail(op, "one of k_zero and v_zero is missing: both (asymmetric) or none (symmetric) are needed")
    batch, end = key.shape[0], position + key.shape[1]
    for name, store, dim in (
        ("k", (k_packed, k_scale, k_zero), key.shape[3]),
        ("v", (v_packed, v_scale, v_zero), value.shape[3]),
    ):
        heads = _check_store(op, name, store, batch, dim, bits, end)
        if heads != key.shape[2]:
            checks.fail(op, f"{name}_packed has {heads} heads, key has {key.shape[2]}")
        for part in store:
            if part is not None and not part.is_contiguous():
                checks.fail(op, f"a buffer of {name} is not contiguous; it is written in place")
    if base is not None:
        checks.blocks(op, key, base, block)


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
    op = "kv_attention"
    checks.bits_ok(op, bits)
    _rows4(op, "query", query)
    batch, rows, heads, dim = query.shape
    if not 0 < rows <= min(length, ref_kv.ROWS):
        checks.fail(op, f"{rows} query positions at length {length}, 1 to {ref_kv.ROWS} of them are needed")
    if max(dim, v_dim) > ref_kv.DIM or v_dim < 1:
        checks.fail(op, f"heads of {dim} and {v_dim} values, 1 to {ref_kv.DIM} are needed")
    kv_heads = _check_store(op, "k", (k_packed, k_scale, k_zero), batch, dim, bits, length)
    if kv_heads == 0 or heads % kv_heads:
        checks.fail(op, f"{heads} query heads are no multiple of {kv_heads} kv heads")
    if _check_store(op, "v", (v_packed, v_scale, v_zero), batch, v_dim, bits, length) != kv_heads:
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


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _turn(base: Tensor | None, block: int) -> tuple[Tensor | None, int, int]:
    if base is None:
        return None, 0, 0
    return base.to(torch.float32).contiguous(), base.shape[0], block


_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def kv_append(
    key: Tensor,
    value: Tensor,
    k_packed: Tensor,
    k_scale: Tensor,
    k_zero: Tensor | None,
    v_packed: Tensor,
    v_scale: Tensor,
    v_zero: Tensor | None,
    position: int,
    bits: int,
    clip: float,
    base: Tensor | None,
    block: int,
) -> None:
    batch, rows, heads, k_dim = key.shape
    stores = (k_packed, k_scale, k_zero, v_packed, v_scale, v_zero)
    key, value = key.contiguous(), value.contiguous()
    shape = (_DTYPES[key.dtype], batch, rows, heads, k_dim, value.shape[3])
    turn = _turn(base, block)
    call("dfq_kv_append", key, value, *shape, *stores, position, bits, int(k_zero is None), clip, *turn)


def kv_attention(
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
    query = query.contiguous()
    batch, rows, heads, dim = query.shape
    out = torch.empty((batch, rows, heads, v_dim), dtype=query.dtype)
    stores = [_dense(part) for part in (k_packed, k_scale, k_zero, v_packed, v_scale, v_zero)]
    trees = tree.shape[0] if tree is not None and tree.dim() == 3 else 1
    sinks = k_sink.shape[0] if k_sink is not None else 0
    seen = (_dense(first), _dense(tree), trees, _dense(k_sink), _dense(v_sink), sinks, _dense(sink_start))
    shape = (_DTYPES[query.dtype], batch, rows, heads, k_packed.shape[2], dim, v_dim)
    call("dfq_kv_attention", query, *shape, *stores, length, bits, scaling, *_turn(base, block), *seen, out)
    return out


CHECKS: dict[str, Callable[..., None]] = {"kv_append": check_kv_append, "kv_attention": check_kv_attention}
REFERENCES: dict[str, Callable[..., Any]] = {"kv_append": ref_kv.kv_append, "kv_attention": ref_kv.kv_attention}
SHAPES: dict[str, Callable[..., Any]] = {
    "kv_append": lambda *args: None,
    "kv_attention": lambda query, *args: query.new_empty(*query.shape[:3], args[7]),
}
KERNELS: dict[str, Callable[..., Any]] = {"kv_append": kv_append, "kv_attention": kv_attention}

ops.define(SCHEMAS, CHECKS, REFERENCES, SHAPES)
