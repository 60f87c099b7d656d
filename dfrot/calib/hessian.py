"""The Hessian of a tap's layer-wise quantization error, summed over rows of activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

MIN_STEP = 256  # columns per product: narrower ones cost more than they save
STEPS = 8  # products per row block of a wide Hessian


def add_in_parts(total: Tensor, product: Tensor) -> None:
    """total float64 += product float32, of the same shape: some rows at a time, for adding copies them to float64."""
    for sums, rows in zip(torch.split(total, MIN_STEP), torch.split(product, MIN_STEP)):
        sums += rows


class HessianSum:
    """`(2 / n) sum x^T x` of rows x (GPTQ, arXiv 2210.17323): float32 products, float64 sum.

    Of the upper block triangle only: the rest is its mirror image, and these products are most of what calibration
    costs. The sum is kept as these blocks, 4.5 bytes per K^2 in place of 8."""

    def __init__(self, width: int | None = None) -> None:
        """width: K; None takes it from the first rows."""
        self.count = 0
        self.width = width
        self._blocks: dict[int, Tensor] = {}
        """float64 [n, K - first row] by first row, as `products` has them."""

    @staticmethod
    def products(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The sum for rows float32 [M, K] alone, in blocks of its rows: first row, float32 [n, K - first row]."""
        width = rows.shape[1]
        step = max(MIN_STEP, width // STEPS)
        for begin in range(0, width, step):
            yield begin, rows[:, begin : begin + step].T @ rows[:, begin:]

    def add_product(self, begin: int, product: Tensor) -> None:
        """Add a block of `products`."""
        self.width = begin + product.shape[1]
        if begin not in self._blocks:
            self._blocks[begin] = product.double()
            return
        add_in_parts(self._blocks[begin], product)

    def add(self, rows: Tensor) -> None:
        """rows float32 [M, K]."""
        for begin, product in self.products(rows):
            self.add_product(begin, product)
        self.count += len(rows)

    def value(self) -> Tensor:
        """float32 [K, K], exactly symmetric; zeros when nothing was added."""
        return self._mean(dict(self._blocks))

    def take(self) -> Tensor:
        """`value`, and gives back the memory of the sum as it goes. Nothing is left behind it."""
        blocks, self._blocks = self._blocks, {}
        return self._mean(blocks)

    def _mean(self, blocks: dict[int, Tensor]) -> Tensor:
        """The value of these blocks, which are removed one by one."""
        assert self.width is not None
        scale = 2 / max(self.count, 1)
        mean = torch.empty(self.width, self.width) if blocks else torch.zeros(self.width, self.width)
        while blocks:
            first = next(iter(blocks))
            block = blocks.pop(first)
            for begin, rows in zip(range(first, self.width, MIN_STEP), torch.split(block, MIN_STEP)):
                end = begin + len(rows)
                upper = (rows[:, begin - first :] * scale).float()
                corner = upper[:, : len(rows)].triu()
                mean[begin:end, begin:end] = corner + corner.triu(1).T
                mean[begin:end, end:] = upper[:, len(rows) :]
                mean[end:, begin:end] = upper[:, len(rows) :].T
        return mean
