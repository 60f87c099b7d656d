"""Hadamard transforms of every width that models use, and the random rotations that R1 and R2 start from.

A base of order K (entries +-1, K pairwise orthogonal rows, `hadamard_bases`) times Sylvester's 2^k gives width
K * 2^k. Widths that no construction reaches are transformed block by block.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.rotation.hadamard_bases import constructible, sylvester
from dfrot.rotation.online import HadamardSpec

MAX_BASE = 1024  # the base is applied as a dense K x K product; beyond this it costs more than it mixes


def _bases(size: int, max_base: int) -> tuple[int, ...] | None:
    """Orders of bases whose product times a power of two is `size`, the product at most `max_base`.

    A single base where there is one, else the smallest product of two or three; None when there is none."""
    odd = size >> ((size & -size).bit_length() - 1)
    if odd == 1:
        return ()
    totals = [odd << k for k in range(size.bit_length()) if size % (odd << k) == 0 and odd << k <= max_base]
    for total in totals:
        if constructible(total):
            return (total,)
    for total, count in itertools.product(totals, (2, 3)):
        if factors := _factorize(total, count):
            return factors
    return None


def _factorize(total: int, count: int) -> tuple[int, ...] | None:
    """`total` as a product of `count` constructible orders above 2, largest first; None when impossible."""
    if count == 1:
        return (total,) if total > 2 and constructible(total) else None
    for last in range(4, math.isqrt(total) + 1, 4):
        if total % last == 0 and constructible(last):
            others = _factorize(total // last, count - 1)
            if others and others[-1] >= last:
                return (*others, last)
    return None


def hadamard_plan(size: int, block: int | None = None, max_base: int = MAX_BASE) -> HadamardSpec:
    """The transform of a dimension of `size`: full width where a construction exists, else the widest block that
    has one (then `spec.block < size`).

    Args:
        size: width of the dimension.
        block: width of a block; must divide `size` and be constructible. None takes the widest.
        max_base: largest order of a dense base.

    Raises UnsupportedError for an explicit block that cannot be built."""
    if block is not None:
        bases = _bases(block, max_base) if block > 0 else None
        if block < 1 or size % block or bases is None:
            raise UnsupportedError(
                f"Hadamard block {block} for a width of {size}: must divide it and have a construction "
                f"(try {hadamard_plan(size, max_base=max_base).block} or {size & -size})"
            )
        return HadamardSpec(size, block, bases)
    for width in sorted((divisor for divisor in range(1, size + 1) if size % divisor == 0), reverse=True):
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
    """x [..., size] times the transform, float64 [..., size].

    This is what fusing applies to weights; it does not use the kernels, so that each can check the other."""
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
    """A source of raw 64-bit words: a stream that numpy guarantees across versions (unlike any normal())."""
    return np.random.PCG64(np.random.SeedSequence(seed))


def randomized_hadamard(size: int, seed: int | tuple[int, ...], block: int | None = None) -> Tensor:
    """Random signs times the Hadamard transform of `hadamard_plan(size, block)`: orthogonal float64 [size, size].

    Block diagonal where the plan's block is below `size`. Raises UnsupportedError for a block that cannot be built."""
    spec = hadamard_plan(size, block)
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
