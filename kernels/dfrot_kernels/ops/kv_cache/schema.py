"""Schemas, checks and shapes of `kv_quantize`, `kv_dequantize`, `kv_append`."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops import checks

KV_QUANTIZE = "(Tensor x, int bits, bool symmetric, float clip) -> (Tensor, Tensor, Tensor)"
KV_DEQUANTIZE = "(Tensor packed, Tensor scale, Tensor? zero, int width, int bits, ScalarType dtype) -> Tensor"
KV_APPEND = (
    "(Tensor key, Tensor value, Tensor(a!) k_packed, Tensor(b!) k_scale, Tensor(c!)? k_zero, "
    "Tensor(d!) v_packed, Tensor(e!) v_scale, Tensor(f!)? v_zero, int position, int bits, float clip, "
    "Tensor? base, int block, Tensor? shift=None) -> ()"
)
Store = tuple[Tensor, Tensor, Tensor | None]  # codes, scale, zero of keys or values


def check_kv_quantize(x: Tensor, bits: int, symmetric: bool, clip: float) -> None:
    """Raises ValueError for arguments that `kv_quantize` refuses."""
    checks.bits_ok("kv_quantize", bits)
    checks.dtype("kv_quantize", "x", x, checks.FLOATS)
    if x.dim() < 1 or x.shape[-1] == 0:
        checks.fail("kv_quantize", f"x has shape {tuple(x.shape)}, rows are needed")
    checks.clip_ok("kv_quantize", clip)


def check_kv_dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, width: int, bits: int, dtype: torch.dtype
) -> None:
    """Raises ValueError for arguments that `kv_dequantize` refuses."""
    op = "kv_dequantize"
    checks.bits_ok(op, bits)
    if dtype not in checks.FLOATS:
        checks.fail(op, f"dtype is {dtype}, float32, bfloat16 or float16 is needed")
    checks.dtype(op, "packed", packed, (torch.uint8,))
    checks.dtype(op, "scale", scale, (torch.float16,))
    checks.row_bytes(op, packed, width, bits)
    rows = tuple(packed.shape[:-1])
    checks.shape(op, "scale", scale, rows)
    if zero is not None:
        checks.dtype(op, "zero", zero, (torch.uint8,))
        checks.shape(op, "zero", zero, rows)


def check_store(op: str, name: str, store: Store, batch: int, dim: int, bits: int, length: int) -> int:
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


def check_heads(op: str, name: str, x: Tensor) -> None:
    """x must be floats [batch, positions, heads, head_dim]."""
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
    shift: Tensor | None = None,
) -> None:
    """Raises ValueError for arguments that `kv_append` refuses."""
    op = "kv_append"
    checks.bits_ok(op, bits)
    checks.clip_ok(op, clip)
    check_heads(op, "key", key)
    check_heads(op, "value", value)
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
        heads = check_store(op, name, store, batch, dim, bits, end)
        if heads != key.shape[2]:
            checks.fail(op, f"{name}_packed has {heads} heads, key has {key.shape[2]}")
        for part in store:
            if part is not None and not part.is_contiguous():
                checks.fail(op, f"a buffer of {name} is not contiguous; it is written in place")
    if base is not None:
        checks.blocks(op, key, base, block)
    if shift is not None:
        checks.dtype(op, "shift", shift, (torch.float32,))
        checks.shape(op, "shift", shift, (key.shape[2], key.shape[3]))


def kv_quantize_shape(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """Empty outputs of `kv_quantize`."""
    lead, width = x.shape[:-1], (x.shape[-1] * bits + 7) // 8
    return (
        x.new_empty(*lead, width, dtype=torch.uint8),
        x.new_empty(lead, dtype=torch.float16),
        x.new_empty(lead, dtype=torch.uint8),
    )


def kv_dequantize_shape(
    packed: Tensor, scale: Tensor, zero: Tensor | None, width: int, bits: int, dtype: torch.dtype
) -> Tensor:
    """Empty outputs of `kv_dequantize`."""
    return packed.new_empty(*packed.shape[:-1], width, dtype=dtype)


def kv_append_shape(
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
    shift: Tensor | None = None,
) -> None:
    """Empty outputs of `kv_append`."""
    return
