"""The Hessian of a tap's layer-wise quantization error, summed over rows of activations."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_STEP = 256  # columns per product: narrower ones cost more than they save
STEPS = 8  # products per row block of a wide Hessian


class HessianSum:
    """`(2 / n) sum x^T x` of rows x (GPTQ, arXiv 2210.17323): float32 products, float64 sum.

    Of the upper block triangle only: the rest is its mirror image, and these products are most of what calibration
    costs."""

    def __init__(self, width: int | None = None) -> None:
        """width: K; None takes it from the first rows."""
        self.count = 0
        self.total = None if width is None else torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """rows float32 [M, K]."""
        width = rows.shape[1]
        if self.total is None:
            self.total = torch.zeros(width, width, dtype=torch.float64)
        step = max(MIN_STEP, width // STEPS)
        for begin in range(0, width, step):
            self.total[begin : begin + step, begin:] += rows[:, begin : begin + step].T @ rows[:, begin:]
        self.count += len(rows)

    def value(self) -> Tensor:
        """float32 [K, K], exactly symmetric; zeros when nothing was added."""
        assert self.total is not None
        upper = (self.total * (2 / max(self.count, 1))).float()
        return upper.triu_().add_(upper.triu(1).T)
