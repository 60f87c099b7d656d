"""R1 with one direction on a constant: energy that all tokens share costs an asymmetric quantizer nothing.

A per-token asymmetric grid covers [min, max], so a constant on all channels moves it and does not widen it. R1 may
therefore map the direction u that the rows have in common to (1, ..., 1) / sqrt(d): `R1 P`, P the reflection that
exchanges u R1 and that vector. Of a Hadamard matrix P changes entries by a term of rank 1, so spikes stay spread. The
idea of one direction that the offset absorbs is OffQ's (arXiv 2606.07116).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.rotation.refinement.calibration_rows import CalibrationRows

ROWS = 4096  # rows per product: bounds the temporary


def common_direction(rows: CalibrationRows) -> tuple[Tensor, float]:
    """The unit vector float64 [d] with the largest share of the rows' energy, and that share."""
    gram = torch.zeros(rows.width, rows.width, dtype=torch.float64)
    for begin in range(0, len(rows.rows), ROWS):
        part = rows.rows[begin : begin + ROWS]
        gram += ((part * rows.weight[begin : begin + ROWS, None]).T @ part).double()
    values, vectors = torch.linalg.eigh(gram)
    return vectors[:, -1], float(values[-1] / values.sum().clamp_min(1e-300))


def aligned(matrix: Tensor, direction: Tensor) -> Tensor:
    """Orthogonal float64 [d, d] that maps unit vector `direction` [d] to a constant, made of `matrix` by a reflection.

    Raises InputError for a direction that is no unit vector."""
    size = matrix.shape[0]
    if abs(float(direction.square().sum()) - 1) > 1e-9:
        raise InputError("rotation: the direction to align is no unit vector")
    constant = torch.full((size,), size**-0.5, dtype=torch.float64)
    image = direction @ matrix
    if float(image @ constant) < 0:
        constant = -constant  # the nearer of both: direction has no sign
    normal = image - constant
    length = float(normal.norm())
    if length < 1e-12:
        return matrix.clone()
    normal = normal / length
    return matrix - 2 * torch.outer(matrix @ normal, normal)
