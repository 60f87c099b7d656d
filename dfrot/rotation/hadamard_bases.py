"""Hadamard matrices of known order, generated: no tables.

Orders come from Paley's two constructions over GF(q) (J. Math. Phys. 12, 1933), from Williamson's four circulants
for 172 (Duke Math. J. 11, 1944), from Sylvester's powers of two and from doubling.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.rotation.finite_field import jacobsthal, prime_power


def _paley(order: int) -> tuple[str, int] | None:
    """Which of Paley's constructions ("I" or "II") has this order, and the order q of its field."""
    if prime_power(order - 1) and (order - 1) % 4 == 3:
        return "I", order - 1
    half = order // 2 - 1
    if order % 4 == 0 and prime_power(half) and half % 4 == 1:
        return "II", half
    return None


@functools.lru_cache(maxsize=4096)
def constructible(order: int) -> bool:
    """Whether `base_matrix(order)` exists."""
    if order in (1, 2, 172):
        return True
    return order > 2 and order % 4 == 0 and (_paley(order) is not None or constructible(order // 2))


@functools.lru_cache(maxsize=8)
def base_matrix(order: int) -> Tensor:
    """A Hadamard matrix [order, order] float64 with entries +-1.

    Raises UnsupportedError for orders that no construction here reaches."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    paley = _paley(order) if order > 2 else None
    if paley:
        kind, q = paley
        return _paley_one(q) if kind == "I" else _paley_two(q)
    if order == 172:
        return _williamson_172()
    if not constructible(order):
        raise UnsupportedError(f"Hadamard matrix of order {order}: no known construction; use a block that has one")
    return torch.kron(sylvester(2), base_matrix(order // 2))


def _paley_one(q: int) -> Tensor:
    """Order q + 1 for q = 3 mod 4: the identity plus the skew conference matrix."""
    conference = torch.ones(q + 1, q + 1, dtype=torch.float64)
    conference[0, 0] = 0
    conference[1:, 0] = -1
    conference[1:, 1:] = jacobsthal(q)
    return conference + torch.eye(q + 1, dtype=torch.float64)


def _paley_two(q: int) -> Tensor:
    """Order 2 (q + 1) for q = 1 mod 4: the symmetric conference matrix, each entry a 2 x 2 cell."""
    conference = torch.ones(q + 1, q + 1, dtype=torch.float64)
    conference[0, 0] = 0
    conference[1:, 1:] = jacobsthal(q)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(conference, sylvester(2)) + torch.kron(torch.eye(q + 1, dtype=torch.float64), diagonal)


def _williamson_172() -> Tensor:
    """Four symmetric circulants of order 43, constant on the cosets of {+-1} x {cube roots of 1} in (Z/43)*."""
    n = 43
    group = {sign * root % n for root in (1, 6, 36) for sign in (1, -1)}
    blocks = []
    for signs in ("++++---", "++----+", "+-+-+-+", "-++--++"):
        first_row = torch.ones(n, dtype=torch.float64)
        for representative, sign in zip((1, 2, 3, 4, 5, 9, 10), signs, strict=True):
            for element in group:
                first_row[representative * element % n] = 1.0 if sign == "+" else -1.0
        index = torch.arange(n)
        blocks.append(first_row[(index.unsqueeze(0) - index.unsqueeze(1)) % n])
    a, b, c, d = blocks
    rows = [[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]]
    return torch.cat([torch.cat(row, dim=1) for row in rows])


def sylvester(order: int) -> Tensor:
    """Sylvester's matrix [order, order] float64 with entries +-1; `order` is a power of two."""
    out = torch.ones(order, order, dtype=torch.float64)
    half = 1
    while half < order:  # in place: at 8192 one copy is half a gigabyte
        corner = out[:half, :half]
        out[:half, half : 2 * half] = corner
        out[half : 2 * half, :half] = corner
        torch.neg(corner, out=out[half : 2 * half, half : 2 * half])
        half *= 2
    return out
