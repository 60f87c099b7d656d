"""Orthogonal polar factors: the Procrustes solution argmax_R tr(R^T C), R orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor


def polar(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition of a square matrix [d, d], in its dtype."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    factor: Tensor = u @ vh
    return factor


def orthogonality_error(matrix: Tensor) -> float:
    """|R^T R - I|_max of float64 R [d, d]."""
    gram = matrix.T @ matrix
    gram.diagonal().sub_(1.0)
    return float(gram.abs().max())


def orthogonalise(matrix: Tensor, limit: int = 40) -> Tensor:
    """The polar factor of a nearly orthogonal matrix in float64, by Newton-Schulz steps R (3 I - R^T R) / 2.

    Converges quadratically for singular values in (0, sqrt 3) (Higham, Functions of Matrices, section 8.3).
    """
    found = matrix.double()
    for _ in range(limit):
        gram = found.T @ found
        gram.diagonal().sub_(1.0)
        error = float(gram.abs().max())
        found = found - found @ gram.mul_(0.5)
        if error < 1e-8:  # this step squared it: orthogonal to rounding
            break
    return found
