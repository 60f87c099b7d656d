"""Inverses and solutions of stacks of matrices, one matrix at a time.

torch factors the matrices of a stack in several threads at once, and MKL's LU is not safe there: from about 150 rows
on, in any process that has set its number of threads, it fails or returns wrong numbers (pytorch/pytorch #141358,
#142815). One matrix at a time is right, and uses all threads inside the matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverses(matrices: Tensor) -> Tensor:
    """[..., n, n] -> [..., n, n], each the inverse of its matrix; NaN where it is singular."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    return torch.stack([_found(*torch.linalg.inv_ex(matrix)) for matrix in flat]).reshape(matrices.shape)


def solutions(matrices: Tensor, wanted: Tensor) -> Tensor:
    """x [B, n] with matrices [B, n, n] x = wanted [B, n]; NaN where a matrix is singular."""
    return torch.stack([_found(*torch.linalg.solve_ex(*pair)) for pair in zip(matrices, wanted)])


def _found(result: Tensor, info: Tensor) -> Tensor:
    return result if int(info) == 0 else torch.full_like(result, torch.nan)
