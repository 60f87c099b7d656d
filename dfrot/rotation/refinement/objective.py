"""The objective of the refinement, measured: float32 products, every sum in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.rotation.refinement.calibration_rows import CalibrationRows
from dfrot.rotation.refinement.tiles import CACHED, Tiles, spans, tile_rows
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer

AUTO_WEIGHT = 10.0  # gamma^2 N_m / N of the paper's models at gamma 100 (notes on its public code: plain sums)


@dataclass(frozen=True)
class Objective:
    """The objective at one rotation, and its two parts (DFRot, equation 5)."""

    value: float
    """sum_common w |xR - Q(xR)|^2 + gamma^2 sum_massive |xR - Q(xR)|^2."""
    common: float
    """Mean squared error per common token, unweighted; 0 when there is none."""
    massive: float
    """Mean squared error per massive token, unweighted; 0 when there is none."""


def effective_gamma(rows: CalibrationRows, gamma: float | str) -> float:
    """The number that "auto" means for these rows: gamma^2 N_m / N = 10; 1 when nothing is massive."""
    if gamma != "auto":
        return float(gamma)
    count = rows.n_massive
    return float((AUTO_WEIGHT * rows.total / count) ** 0.5) if count else 1.0


def row_errors(rows: Tensor, matrix: Tensor, quantizer: TokenQuantizer, tiles: Tiles) -> Tensor:
    """|xR - Q(xR)|^2 of every row x of `rows` float32 [n, d], float64 [n]; R is `matrix` [d, d], cast to float32."""
    rotation = matrix.float()
    step = max(1, CACHED // rows.shape[1])

    def tile(part: slice) -> Tensor:
        y = rows[part] @ rotation
        # in pieces: the quantizer makes several copies
        return torch.cat([quantizer.error(piece) for piece in torch.split(y, step)])

    parts = tiles.shared(tile, spans(len(rows), tile_rows(rows.shape[1])))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def combine(rows: CalibrationRows, errors: Tensor, gamma: float) -> Objective:
    """The objective from the errors per row, float64 [n]."""
    massive = rows.massive
    common_sum = float((rows.weight[~massive].double() * errors[~massive]).sum())
    massive_sum = float(errors[massive].sum())
    count = rows.n_massive
    return Objective(
        common_sum + gamma**2 * massive_sum, common_sum / max(rows.total - count, 1), massive_sum / max(count, 1)
    )


def evaluate(rows: CalibrationRows, matrix: Tensor, quantizer: TokenQuantizer, gamma: float, tiles: Tiles) -> Objective:
    """The objective of rotation `matrix` [d, d] on all rows."""
    return combine(rows, row_errors(rows.rows, matrix, quantizer, tiles), gamma)
