"""The Hessian of a tap's layer-wise quantization error, summed over rows of activations."""

from __future__ import annotations

from collections.abc import Iterator

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

    @staticmethod
    def products(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The sum for rows float32 [M, K] alone, in blocks of its rows: first row, float32 [n, K - first row]."""
        width = rows.shape[1]
        step = max(MIN_STEP, width // STEPS)
        for begin in range(0, width, step):
            yield begin, rows[:, begin : begin + step].T @ rows[:, begin:]

    def add_product(self, begin: int, product: Tensor) -> None:
        """Add a block of `products`. The block that begins at 0 has as many columns as the Hessian."""
        if self.total is None:
            width = begin + product.shape[1]
            self.total = torch.zeros(width, width, dtype=torch.float64)
        self.total[begin : begin + len(product), begin:] += product

    def add(self, rows: Tensor) -> None:
        """rows float32 [M, K]."""
        for begin, product in self.products(rows):
            self.add_product(begin, product)
        self.count += len(rows)

    def value(self) -> Tensor:
        """float32 [K, K], exactly symmetric; zeros when nothing was added."""
        assert self.total is not None
        upper = torch.empty(self.total.shape)
        for rows, mean in zip(torch.split(self.total, MIN_STEP), torch.split(upper, MIN_STEP)):
            mean.copy_(rows * (2 / max(self.count, 1)))
        return upper.triu_().add_(upper.triu(1).T)
