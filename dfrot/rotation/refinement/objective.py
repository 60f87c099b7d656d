"""The objective of the refinement, measured: float32 products, every sum in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.rotation.refinement.features import CalibrationRows
from dfrot.rotation.refinement.row_grid import TokenQuantizer
from dfrot.rotation.refinement.tiles import CACHED, Tiles, spans, tile_rows

AUTO_WEIGHT = 10.0  # gamma^2 N_m / N of the paper's models at gamma 100 (notes on its public code: plain sums)


@dataclass(frozen=True)
class Objective:
    """value: sum_common w |xR - Q(xR)|^2 + gamma^2 sum_massive |xR - Q(xR)|^2. common, massive: mean squared error
    per token of the two sets (unweighted; 0 for an empty set)."""

    value: float
    common: float
    massive: float


def effective_gamma(features: CalibrationRows, gamma: float | str) -> float:
    """The number that "auto" stands for on these features: gamma^2 N_m / N = 10; 1 when nothing is massive."""
    if gamma != "auto":
        return float(gamma)
    count = features.n_massive
    return float((AUTO_WEIGHT * features.total / count) ** 0.5) if count else 1.0


def row_errors(rows: Tensor, matrix: Tensor, grid: TokenQuantizer, tiles: Tiles) -> Tensor:
    """|xR - Q(xR)|^2 of every row of rows float32 [n, d], float64 [n]; matrix is cast to float32."""
    turned = matrix.float()
    step = max(1, CACHED // rows.shape[1])

    def tile(part: slice) -> Tensor:
        y = rows[part] @ turned
        return torch.cat([grid.error(piece) for piece in torch.split(y, step)])  # the grid makes several copies

    parts = tiles.each(tile, spans(len(rows), tile_rows(rows.shape[1])))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def combine(features: CalibrationRows, errors: Tensor, gamma: float) -> Objective:
    """The objective from errors per row float64 [n]."""
    massive = features.massive
    common_sum = float((features.weight[~massive].double() * errors[~massive]).sum())
    massive_sum = float(errors[massive].sum())
    count = features.n_massive
    return Objective(
        common_sum + gamma**2 * massive_sum, common_sum / max(features.total - count, 1), massive_sum / max(count, 1)
    )


def evaluate(features: CalibrationRows, matrix: Tensor, grid: TokenQuantizer, gamma: float, tiles: Tiles) -> Objective:
    """The objective of rotation `matrix` [d, d] on all features."""
    return combine(features, row_errors(features.rows, matrix, grid, tiles), gamma)
