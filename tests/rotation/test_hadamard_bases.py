"""Hadamard matrices of known order."""

from __future__ import annotations

import pytest
import torch

from dfrot.errors import UnsupportedError
from dfrot.rotation.hadamard_bases import base_matrix

ORDERS = [1, 2, 4, 12, 20, 28, 36, 40, 44, 52, 60, 68, 76, 84, 100, 108, 136, 140, 148, 152, 168, 172, 176, 200, 684]


@pytest.mark.parametrize("order", ORDERS)
def test_bases_are_hadamard(order: int) -> None:
    base = base_matrix(order)
    assert base.shape == (order, order)
    assert base.dtype == torch.float64
    assert bool((base.abs() == 1).all())
    assert torch.equal(base @ base.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [6, 10, 92, 116])
def test_unknown_orders_are_refused(order: int) -> None:
    with pytest.raises(UnsupportedError, match=f"order {order}"):
        base_matrix(order)
