"""Cholesky factors of wide matrices in the memory of one triangle.

The lower triangle of a float64 matrix [K, K] as panels of rows: panel p holds rows begin .. end and columns 0 .. end.
At K = 14336, down_proj of an 8B Llama, that is 0.94 GB in place of 1.64, and everything works in place: LAPACK on the
diagonal blocks, matrix products on the rest. A matrix of at most WIDTH columns is one panel, for which nothing but
LAPACK is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

WIDTH = 2048  # rows of a panel: a multiple of GPTQ's blocks, so that none of them lies in two
INVERTED = 512  # columns of a triangular matrix that are inverted together


def panel_slices(size: int) -> list[slice]:
    """Rows of each panel of a matrix of this size: WIDTH of them, of the first what is left over."""
    edges = [0, *range(size % WIDTH or WIDTH, size + 1, WIDTH)] if size > WIDTH else [0, size]
    return [slice(begin, end) for begin, end in pairwise(edges)]


def panel_values(size: int) -> int:
    """Values in the panels of a matrix of this size."""
    return sum((rows.stop - rows.start) * rows.stop for rows in panel_slices(size))


def panel_bytes(size: int) -> int:
    """Bytes of the panels of a matrix of this size, and of the copies of a diagonal block while it is factored."""
    return 8 * panel_values(size) + 16 * min(size, WIDTH) * min(size, WIDTH)


def _parts(panels: Sequence[Tensor]) -> list[tuple[slice, Tensor, Tensor]]:
    """Of every panel: its rows, what lies left of the diagonal block, [n, begin], and that block, [n, n]."""
    parts = []
    for panel in panels:
        end = panel.shape[1]
        begin = end - len(panel)
        parts.append((slice(begin, end), panel[:, :begin], panel[:, begin:]))
    return parts


def _by_columns(corner: Tensor) -> Tensor:
    """A copy in the layout that LAPACK takes."""
    return corner.mT.clone(memory_format=torch.contiguous_format).mT


def factor_in_place(panels: Sequence[Tensor]) -> bool:
    """Replace a symmetric matrix by its lower Cholesky factor L, A = L L^T; whether it is positive definite. Where not,
    the panels hold nothing of use. What lies above the diagonal of their last columns is ignored, and becomes 0."""
    parts = _parts(panels)
    for number, (_, left, corner) in enumerate(parts):
        _divide_by_transposed(left, parts[:number])
        if left.shape[1]:
            corner.addmm_(left, left.mT, alpha=-1)
        lower, info = torch.linalg.cholesky_ex(_by_columns(corner))
        if int(info) != 0:
            return False
        corner.copy_(lower)
    return True


def _divide_by_transposed(rows: Tensor, parts: Sequence[tuple[slice, Tensor, Tensor]]) -> None:
    """rows [n, K] L^-T, in place; parts: of L."""
    for at, left, corner in parts:
        if left.shape[1]:
            rows[:, at].addmm_(rows[:, : at.start], left.mT, alpha=-1)
        for some in torch.split(rows[:, at], WIDTH):
            some.copy_(torch.linalg.solve_triangular(corner.mT, some, upper=True, left=False))


def _divide(rows: Tensor, parts: Sequence[tuple[slice, Tensor, Tensor]]) -> None:
    """rows [n, K] L^-1, in place; parts: of L."""
    for at, left, corner in reversed(parts):
        for some in torch.split(rows[:, at], WIDTH):
            some.copy_(torch.linalg.solve_triangular(corner, some, upper=False, left=False))
        if left.shape[1]:
            rows[:, : at.start].addmm_(rows[:, at], left, alpha=-1)


def divide_in_place(rows: Tensor, panels: Sequence[Tensor]) -> Tensor:
    """rows float64 [n, K] times the inverse of A = L L^T, in place. panels: of L, as `factor_in_place` leaves them."""
    parts = _parts(panels)
    if len(parts) == 1:
        return rows.copy_(torch.cholesky_solve(rows.mT, _by_columns(parts[0][2])).mT)
    _divide_by_transposed(rows, parts)
    _divide(rows, parts)
    return rows


def invert_in_place(panels: Sequence[Tensor]) -> None:
    """Replace a lower triangular matrix L by its inverse, a third of the work of solving for the identity. Panels from
    the last to the first, each of which needs only those above it."""
    parts = _parts(panels)
    for number in range(len(parts) - 1, -1, -1):
        _, left, corner = parts[number]
        corner.copy_(inverted(_by_columns(corner)))
        for some in torch.split(left, WIDTH, 1):
            some.copy_(torch.mm(corner, some).neg_())
        _divide(left, parts[:number])


def inverted(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix float64 [K, K], in its place: block by block of columns, each of which
    needs only what lies to its right."""
    size = len(lower)
    for begin in range(0, size, INVERTED):
        block = slice(begin, min(begin + INVERTED, size))
        columns = torch.zeros(size - begin, block.stop - begin, dtype=torch.float64)
        columns.fill_diagonal_(1.0)
        lower[begin:, block] = torch.linalg.solve_triangular(lower[begin:, begin:], columns, upper=False)
    return lower
