"""Schemas, checks and shapes of the ops on prepacked weights. Layout and conventions are in reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.ops import checks
from dfrot_kernels.ops.tile16.reference import BYTES, DEPTH, ROWS

_WEIGHT = "Tensor tiles, Tensor scale, Tensor? zero"
PREPACK = "(Tensor packed, int k, int group, bool with_sums) -> (Tensor, Tensor)"
UNPREPACK = "(Tensor tiles, int n, int k) -> Tensor"
W4A16_TILED_MM = f"(Tensor x, {_WEIGHT}, Tensor? bias, int n, int group) -> Tensor"
W4A8_TILED_MM = (
    f"(Tensor q, Tensor x_scale, Tensor? x_zero, {_WEIGHT}, Tensor? sums, Tensor? bias, int n, int group, "
    "ScalarType dtype) -> Tensor"
)


def supports(bits: int, k: int, group: int) -> bool:
    """Whether a weight of these codes has a tiled layout: 4 bits, groups of whole blocks of 8 columns."""
    return bits == 4 and (group % DEPTH == 0 or group >= k)


def groups_of(op: str, k: int, group: int) -> int:
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
    needed = (groups_of(op, k, group), tiles.shape[0] * ROWS)
    for name, tensor, kind in columns:
        if tensor is not None and (tensor.dtype != kind or tensor.shape != needed):
            checks.dtype(op, name, tensor, (kind,))
            checks.shape(op, name, tensor, needed)


def _bias(op: str, bias: Tensor | None, n: int) -> None:
    if bias is not None:
        checks.dtype(op, "bias", bias, checks.FLOATS)
        checks.shape(op, "bias", bias, (n,))


def check_prepack(packed: Tensor, k: int, group: int, with_sums: bool) -> None:
    """Raises ValueError for arguments that `prepack` refuses."""
    checks.matrix("prepack", "packed", packed, (torch.uint8,))
    checks.row_bytes("prepack", packed, k, 4)
    groups_of("prepack", k, group)


def check_unprepack(tiles: Tensor, n: int, k: int) -> None:
    """Raises ValueError for arguments that `unprepack` refuses."""
    _tiles("unprepack", tiles, n, k)


def check_w4a16_tiled_mm(
    x: Tensor, tiles: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, n: int, group: int
) -> None:
    """Raises ValueError for arguments that `w4a16_tiled_mm` refuses."""
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
    """Raises ValueError for arguments that `w4a8_tiled_mm` refuses."""
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


def prepack_shape(packed: Tensor, k: int, group: int, with_sums: bool) -> tuple[Tensor, Tensor]:
    """Empty outputs of `prepack`."""
    tiles, groups = -(-packed.shape[0] // ROWS), groups_of("prepack", k, group) if with_sums else 0
    return (
        packed.new_empty(tiles, -(-k // DEPTH), BYTES),
        packed.new_empty((groups, tiles * ROWS), dtype=torch.int32),
    )


def unprepack_shape(tiles: Tensor, n: int, k: int) -> Tensor:
    """Empty outputs of `unprepack`."""
    return tiles.new_empty(n, (k + 1) // 2)


def w4a16_tiled_mm_shape(
    x: Tensor, tiles: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, n: int, group: int
) -> Tensor:
    """Empty outputs of `w4a16_tiled_mm`."""
    return x.new_empty(*x.shape[:-1], n)


def w4a8_tiled_mm_shape(
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
    """Empty outputs of `w4a8_tiled_mm`."""
    return x_scale.new_empty(q.shape[0], n, dtype=dtype)
