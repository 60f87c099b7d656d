"""The ops on prepacked weights (tile16). Layout, conventions and docstrings are in ref_tiled.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot_kernels import checks, ops, ref_tiled
from dfrot_kernels.cpu import DTYPE_CODES
from dfrot_kernels.native import call
from dfrot_kernels.ref_tiled import BYTES, DEPTH, ROWS

_WEIGHT = "Tensor tiles, Tensor scale, Tensor? zero"
SCHEMAS = {
    "prepack": "(Tensor packed, int k, int group, bool with_sums) -> (Tensor, Tensor)",
    "unprepack": "(Tensor tiles, int n, int k) -> Tensor",
    "w4a16_tiled_mm": f"(Tensor x, {_WEIGHT}, Tensor? bias, int n, int group) -> Tensor",
    "w4a8_tiled_mm": f"(Tensor q, Tensor x_scale, Tensor? x_zero, {_WEIGHT}, Tensor? sums, Tensor? bias, int n, "
    "int group, ScalarType dtype) -> Tensor",
}


def supports(bits: int, k: int, group: int) -> bool:
    """Whether a weight of these codes has a tiled layout: 4 bits, groups of whole blocks of 8 columns."""
    return bits == 4 and (group % DEPTH == 0 or group >= k)


def _group_ok(op: str, k: int, group: int) -> int:
    """The number of groups."""
    if group < 0 or not supports(4, k, group):
        checks.fail(op, f"group is {group}, 0 (per channel) or a multiple of {DEPTH} is needed")
    return -(-k // group) if group and k else 1


def _tiles(op: str, tiles: Tensor, n: int, k: int) -> None:
    needed = (-(-n // ROWS), -(-k // DEPTH), BYTES)
    if tiles.dtype != torch.uint8 or tiles.shape != needed:
        checks.dtype(op, "tiles", tiles, (torch.uint8,))
        checks.fail(op, f"tiles has shape {tuple(tiles.shape)}, {needed} is needed for {n} x {k}")


def _weight(
    op: str, k: int, n: int, group: int, tiles: Tensor, columns: tuple[tuple[str, Tensor | None, torch.dtype], ...]
) -> None:
    _tiles(op, tiles, n, k)
    needed = (_group_ok(op, k, group), tiles.shape[0] * ROWS)
    for name, tensor, kind in columns:
        if tensor is not None and (tensor.dtype != kind or tensor.shape != needed):
            checks.dtype(op, name, tensor, (kind,))
            checks.shape(op, name, tensor, needed)


def _bias(op: str, bias: Tensor | None, n: int) -> None:
    if bias is not None:
        checks.dtype(op, "bias", bias, checks.FLOATS)
        checks.shape(op, "bias", bias, (n,))


def check_prepack(packed: Tensor, k: int, group: int, with_sums: bool) -> None:
    checks.matrix("prepack", "packed", packed, (torch.uint8,))
    checks.row_bytes("prepack", packed, k, 4)
    _group_ok("prepack", k, group)


def check_unprepack(tiles: Tensor, n: int, k: int) -> None:
    _tiles("unprepack", tiles, n, k)


def check_w4a16_tiled_mm(
    x: Tensor, tiles: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, n: int, group: int
) -> None:
    op = "w4a16_tiled_mm"
    if x.dim() < 1:
        checks.fail(op, "x is a scalar, rows are needed")
    checks.dtype(op, "x", x, checks.FLOATS)
    _weight(op, x.size(-1), n, group, tiles, (("scale", scale, torch.bfloat16), ("zero", zero, torch.uint8)))
    _bias(op, bias, n)


def check_w4a8_tiled_mm(
    q: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    tiles: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    sums: Tensor | None,
    bias: Tensor | None,
    n: int,
    group: int,
    dtype: torch.dtype,
) -> None:
    op = "w4a8_tiled_mm"
    checks.matrix(op, "q", q, (torch.int8,))
    for name, tensor, kind in (("x_scale", x_scale, torch.float32), ("x_zero", x_zero, torch.int32)):
        if tensor is not None and (tensor.dtype != kind or tensor.shape != q.shape[:1]):
            checks.dtype(op, name, tensor, (kind,))
            checks.shape(op, name, tensor, (q.shape[0],))
    if x_zero is not None and sums is None:
        checks.fail(op, "sums is missing: activations with a zero point need the sums of the codes (prepack)")
    columns = (("scale", scale, torch.bfloat16), ("zero", zero, torch.uint8), ("sums", sums, torch.int32))
    _weight(op, q.shape[1], n, group, tiles, columns)
    _bias(op, bias, n)
    if dtype not in DTYPE_CODES:
        checks.fail(op, f"dtype is {dtype}, float32, bfloat16 or float16 is needed")


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _float32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32).contiguous()


def prepack(packed: Tensor, k: int, group: int, with_sums: bool) -> tuple[Tensor, Tensor]:
    n, groups = packed.shape[0], _group_ok("prepack", k, group)
    tiles = torch.empty((-(-n // ROWS), -(-k // DEPTH), BYTES), dtype=torch.uint8)
    sums = torch.empty((groups if with_sums else 0, tiles.shape[0] * ROWS), dtype=torch.int32)
    call("dfq_prepack", packed.contiguous(), n, k, group, tiles, sums if with_sums else None)
    return tiles, sums


def unprepack(tiles: Tensor, n: int, k: int) -> Tensor:
    packed = torch.empty((n, (k + 1) // 2), dtype=torch.uint8)
    call("dfq_unprepack", tiles.contiguous(), n, k, packed)
    return packed


def w4a16_tiled_mm(
    x: Tensor, tiles: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, n: int, group: int
) -> Tensor:
    k = x.shape[-1]
    out = x.new_empty((x.shape[0], n) if x.dim() == 2 else (*x.shape[:-1], n))
    m = x.numel() // k if k else out.numel() // max(n, 1)
    weight = (tiles.contiguous(), scale.contiguous(), _dense(zero))
    call("dfq_tiled_w4a16", x.contiguous(), DTYPE_CODES[x.dtype], m, n, k, *weight, group, _float32(bias), out)
    return out


def w4a8_tiled_mm(
    q: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    tiles: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    sums: Tensor | None,
    bias: Tensor | None,
    n: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    m, k = q.shape
    out = torch.empty((m, n), dtype=dtype)
    tokens = (q.contiguous(), x_scale.contiguous(), _dense(x_zero))
    weight = (tiles.contiguous(), scale.contiguous(), _dense(zero), _dense(sums))
    call("dfq_tiled_w4a8", *tokens, m, n, k, *weight, group, _float32(bias), DTYPE_CODES[dtype], out)
    return out


KERNELS: dict[str, Callable[..., Any]] = {
    "prepack": prepack,
    "unprepack": unprepack,
    "w4a16_tiled_mm": w4a16_tiled_mm,
    "w4a8_tiled_mm": w4a8_tiled_mm,
}

_SHAPES: dict[str, Callable[..., Any]] = {
    "prepack": lambda packed, k, group, with_sums: (
        packed.new_empty(-(-packed.shape[0] // ROWS), -(-k // DEPTH), BYTES),
        packed.new_empty(
            (_group_ok("prepack", k, group) if with_sums else 0, -(-packed.shape[0] // ROWS) * ROWS), dtype=torch.int32
        ),
    ),
    "unprepack": lambda tiles, n, k: tiles.new_empty(n, (k + 1) // 2),
    "w4a16_tiled_mm": lambda x, tiles, scale, zero, bias, n, group: x.new_empty(*x.shape[:-1], n),
    "w4a8_tiled_mm": lambda q, xs, xz, tiles, scale, zero, sums, bias, n, group, dtype: xs.new_empty(
        q.shape[0], n, dtype=dtype
    ),
}

ops.define(
    SCHEMAS,
    {
        "prepack": check_prepack,
        "unprepack": check_unprepack,
        "w4a16_tiled_mm": check_w4a16_tiled_mm,
        "w4a8_tiled_mm": check_w4a8_tiled_mm,
    },
    {
        "prepack": ref_tiled.prepack,
        "unprepack": ref_tiled.unprepack,
        "w4a16_tiled_mm": ref_tiled.w4a16_tiled_mm,
        "w4a8_tiled_mm": ref_tiled.w4a8_tiled_mm,
    },
    _SHAPES,
)
