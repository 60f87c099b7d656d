"""Finite fields: prime powers and Jacobsthal matrices."""

from __future__ import annotations

import pytest
import torch

from dfrot.rotation.finite_field import jacobsthal, prime_power


@pytest.mark.parametrize("q", [9, 25, 27, 49, 7, 13])
def test_jacobsthal(q: int) -> None:
    matrix_q = jacobsthal(q)
    eye, ones = torch.eye(q, dtype=torch.float64), torch.ones(q, q, dtype=torch.float64)
    assert torch.equal(matrix_q @ matrix_q.T, q * eye - ones)
    assert torch.equal(matrix_q.T, matrix_q if q % 4 == 1 else -matrix_q)


def test_prime_powers() -> None:
    assert [q for q in range(2, 33) if prime_power(q)] == [
        *(2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32)
    ]
