"""Orthogonal polar factors: the solution argmax_R tr(R^T C), R orthogonal, of the Procrustes problem."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_STEPS = 40  # Newton-Schulz steps; a matrix that needs more was not nearly orthogonal
CONVERGED = 1e-8  # |R^T R - I|_max before the last step, which squares it: orthogonal to rounding


def polar(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition of matrix [m, n], in its dtype."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    factor: Tensor = u @ vh
    return factor


def orthogonality_error(matrix: Tensor) -> float:
    """|R^T R - I|_max of float64 R [d, d]."""
    gram = matrix.T @ matrix
    gram.diagonal().sub_(1.0)
    return float(gram.abs().max())


def orthogonalise(matrix: Tensor, limit: int = MAX_STEPS) -> Tensor:
    """The polar factor of a nearly orthogonal matrix [d, d], float64, by Newton-Schulz steps R (3 I - R^T R) / 2.

    Converges quadratically for singular values in (0, sqrt 3) (Higham, Functions of Matrices, section 8.3).
    """
    factor = matrix.double()
    for _ in range(limit):
        gram = factor.T @ factor
        gram.diagonal().sub_(1.0)
        error = float(gram.abs().max())
        factor = factor - factor @ gram.mul_(0.5)
        if error < CONVERGED:
            break
    return factor
