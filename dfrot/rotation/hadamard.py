"""Hadamard matrices of every size that models use, generated: no tables.

A base of order K (entries +-1, K rows that are pairwise orthogonal) times Sylvester's 2^k gives size K * 2^k.
Bases come from Paley's two constructions over GF(q) (J. Math. Phys. 12, 1933), from Williamson's four circulants
for 172 (Duke Math. J. 11, 1944) and from doubling. Sizes that none of them reaches are served block by block.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.rotation.finite_field import jacobsthal, prime_power
from dfrot.rotation.online import HadamardSpec

MAX_BASE = 1024  # the base is applied as a dense K x K product; beyond this it costs more than it mixes


def _paley(order: int) -> tuple[str, int] | None:
    """Which of Paley's constructions has this order, and its field."""
    found = prime_power(order - 1)
    if found and (order - 1) % 4 == 3:
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
    """A Hadamard matrix [order, order] float64 with entries +-1. Raises UnsupportedError for unknown orders."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    found = _paley(order) if order > 2 else None
    if found:
        kind, q = found
        return _paley_one(q) if kind == "I" else _paley_two(q)
    if order == 172:
        return _williamson_172()
    if not constructible(order):
        raise UnsupportedError(f"Hadamard matrix of order {order}: no known construction; use a block that has one")
    return torch.kron(sylvester(2), base_matrix(order // 2))


def _paley_one(q: int) -> Tensor:
    """Order q + 1, q = 3 mod 4: identity plus the skew conference matrix."""
    conference = torch.ones(q + 1, q + 1, dtype=torch.float64)
    conference[0, 0] = 0
    conference[1:, 0] = -1
    conference[1:, 1:] = jacobsthal(q)
    return conference + torch.eye(q + 1, dtype=torch.float64)


def _paley_two(q: int) -> Tensor:
    """Order 2 (q + 1), q = 1 mod 4: the symmetric conference matrix with 2 x 2 cells."""
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
        row = torch.ones(n, dtype=torch.float64)
        for representative, sign in zip((1, 2, 3, 4, 5, 9, 10), signs, strict=True):
            for element in group:
                row[representative * element % n] = 1.0 if sign == "+" else -1.0
        index = torch.arange(n)
        blocks.append(row[(index.unsqueeze(0) - index.unsqueeze(1)) % n])
    a, b, c, d = blocks
    rows = [[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]]
    return torch.cat([torch.cat(row, dim=1) for row in rows])


def sylvester(order: int) -> Tensor:
    """Sylvester's matrix [order, order] float64, order a power of two, entries +-1."""
    out = torch.ones(order, order, dtype=torch.float64)
    half = 1
    while half < order:  # in place: at 8192 one copy is half a gigabyte
        corner = out[:half, :half]
        out[:half, half : 2 * half] = corner
        out[half : 2 * half, :half] = corner
        torch.neg(corner, out=out[half : 2 * half, half : 2 * half])
        half *= 2
    return out


def _bases(size: int, max_base: int) -> tuple[int, ...] | None:
    """Bases whose product times a power of two is `size`: one if possible, else the smallest product of two or
    three. None when there is none with a product of at most `max_base`."""
    odd = size >> ((size & -size).bit_length() - 1)
    if odd == 1:
        return ()
    totals = [odd << k for k in range(size.bit_length()) if size % (odd << k) == 0 and odd << k <= max_base]
    for total in totals:
        if constructible(total):
            return (total,)
    for total, count in itertools.product(totals, (2, 3)):
        if product := _factor(total, count):
            return product
    return None


def _factor(total: int, count: int) -> tuple[int, ...] | None:
    """`total` as `count` constructible orders above 2, largest first."""
    if count == 1:
        return (total,) if total > 2 and constructible(total) else None
    for last in range(4, math.isqrt(total) + 1, 4):
        if total % last == 0 and constructible(last):
            rest = _factor(total // last, count - 1)
            if rest and rest[-1] >= last:
                return (*rest, last)
    return None


def hadamard_plan(size: int, block: int | None = None, max_base: int = MAX_BASE) -> HadamardSpec:
    """The transform of a dimension of `size`: full width where a construction exists, else the widest block that
    has one (visible as `block < size`). An explicit `block` must divide the size and be constructible.

    Raises UnsupportedError for an explicit block that cannot be built."""
    if block is not None:
        bases = _bases(block, max_base) if block > 0 else None
        if block < 1 or size % block or bases is None:
            raise UnsupportedError(
                f"Hadamard block {block} for a width of {size}: must divide it and have a construction "
                f"(try {hadamard_plan(size, max_base=max_base).block} or {size & -size})"
            )
        return HadamardSpec(size, block, bases)
    for width in sorted((d for d in range(1, size + 1) if size % d == 0), reverse=True):
        bases = _bases(width, max_base)
        if bases is not None:
            return HadamardSpec(size, width, bases)
    raise UnsupportedError(f"Hadamard transform of width {size}: a positive width is needed")


def hadamard_matrix(spec: HadamardSpec) -> Tensor:
    """One block of the transform, orthogonal float64 [block, block]."""
    base = spec.base().to(torch.float64)
    power = sylvester(spec.block // base.shape[0])
    full = torch.kron(base, power) if base.shape[0] > 1 else power
    return full.div_(math.sqrt(spec.block))


def hadamard_transform(x: Tensor, spec: HadamardSpec) -> Tensor:
    """x [..., size] times the transform in float64: what fusing applies to weights, independent of the kernels."""
    base = spec.base().to(torch.float64)
    width = spec.block // base.shape[0]
    out = x.to(torch.float64, copy=True).reshape(-1, width)
    half = 1
    while half < width:  # one butterfly per power of two, in place
        pairs = out.view(-1, 2, half)
        difference = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = difference
        half *= 2
    out = out.reshape(-1, base.shape[0], width)
    if base.shape[0] > 1:
        out = torch.matmul(base.T, out)
    return out.div_(math.sqrt(spec.block)).reshape(x.shape)


def _generator(seed: int | tuple[int, ...]) -> np.random.PCG64:
    """A source of raw 64-bit words, a stream that numpy guarantees across versions (unlike any normal())."""
    return np.random.PCG64(np.random.SeedSequence(seed))


def randomized_hadamard(size: int, seed: int | tuple[int, ...]) -> Tensor:
    """Random signs times the Hadamard transform of `hadamard_plan(size)`: orthogonal float64 [size, size].

    Block diagonal where `hadamard_plan(size).block < size`."""
    spec = hadamard_plan(size)
    words = _generator(seed).random_raw(size)
    signs = torch.from_numpy((words >> np.uint64(63)).astype(np.float64)) * 2 - 1
    full = hadamard_matrix(spec)
    if spec.block < size:
        full = torch.kron(torch.eye(size // spec.block, dtype=torch.float64), full)
    return full.mul_(signs.unsqueeze(1))


def random_orthogonal(size: int, seed: int | tuple[int, ...]) -> Tensor:
    """A Haar-distributed orthogonal matrix float64 [size, size]: QR of a Gaussian, signs fixed by R's diagonal.

    The decomposition runs on one thread, so that the result does not depend on the thread count."""
    source = _generator(seed)
    gaussian = torch.empty(size, size, dtype=torch.float64)
    for row in gaussian:  # Box-Muller, row by row to keep the temporaries small
        uniform = ((source.random_raw(2 * size) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[:size]))
        row.copy_(torch.from_numpy(radius * np.cos(2.0 * np.pi * uniform[size:])))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reflectors, tau = torch.geqrf(gaussian)
        del gaussian
        q: Tensor = torch.linalg.householder_product(reflectors, tau)
    finally:
        torch.set_num_threads(threads)
    return q.mul_(torch.sign(torch.diagonal(reflectors)).unsqueeze(0)).contiguous()
