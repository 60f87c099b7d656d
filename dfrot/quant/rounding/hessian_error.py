"""Errors of rounded weights: of the weight itself, and of the layer's output over the calibration (e H e^T)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

TILE = 1 << 25  # weight elements that are worked on together; float32 temporaries are a few times this


def row_tiles(weight: Tensor) -> tuple[Tensor, ...]:
    """Blocks of rows of a weight [N, K], which bound the temporaries of tall weights."""
    return torch.split(weight, tile_height(weight.shape[1]))


def tile_height(columns: int) -> int:
    """Rows of so many columns that are worked on together."""
    return max(1, TILE // max(columns, 1))


def output_errors(error: Tensor, hessian: Tensor) -> Tensor:
    """e H e^T for every row of float32 [N, K]: float64 [N]. The GEMM is float32, the sums are float64."""
    return torch.cat([(tile @ hessian).mul_(tile).sum(1, dtype=torch.float64) for tile in row_tiles(error)])


def squares(rows: Tensor) -> Tensor:
    """The sum of squares of every row of float32 [N, K]: float64 [N]."""
    return rows.square().sum(1, dtype=torch.float64)


def added_error(error: Tensor, added: float) -> Tensor:
    """What `added` on the diagonal of a Hessian adds to e H e^T, for every row of float32 [N, K]: float64 [N]."""
    return added * squares(error)


@contextmanager
def damped(hessian: Tensor, added: float) -> Iterator[Tensor]:
    """The Hessian float32 [K, K] with `added` on its diagonal, inside the context: in its own memory, of which wide
    ones take much. Behind it, the Hessian has its former bytes."""
    diagonal = hessian.diagonal()
    former = diagonal.clone()
    diagonal.add_(added)
    try:
        yield hessian
    finally:
        diagonal.copy_(former)


def finite(matrix: Tensor) -> bool:
    """Whether a matrix holds neither NaN nor Inf; without temporaries of its size, as torch.isfinite has."""
    return bool(torch.stack(torch.aminmax(matrix)).isfinite().all())


def fraction(part: float, total: float) -> float:
    """part / total to six digits, which print alike on every machine. 0 for an all-zero weight."""
    return float(f"{part / total:.6g}") if total > 0 else 0.0


def weight_error(weight: Tensor, rounded: Tensor) -> float:
    """Relative squared error of a rounded weight, both float32 [N, K]."""
    error = sum(float((a - b).square().sum(dtype=torch.float64)) for a, b in zip(row_tiles(weight), row_tiles(rounded)))
    return fraction(error, sum(float(tile.square().sum(dtype=torch.float64)) for tile in row_tiles(weight)))
