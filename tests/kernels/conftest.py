"""Every test of this folder runs with each instruction set of this processor, on poisoned output memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dfrot_kernels.layouts import PackedWeight


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """torch.empty returns NaN (or the largest integer), so an element that a kernel forgets cannot look right."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    """`threads(n)` sets how many threads the kernels may use; the old number comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Example:
    """A random packed weight with its codes, so that tests can compute from the definition."""

    weight: PackedWeight
    codes: Tensor  # uint8 [N, K]

    def exact(self) -> Tensor:
        """float64 [N, K] from the definition w = scale * (u - zero), one column at a time."""
        w, (n, k) = self.weight, self.weight.shape
        out = torch.empty(n, k, dtype=torch.float64)
        for j in range(k):
            g = j // w.group if w.group else 0
            zero = 2 ** (w.bits - 1) if w.zero is None else w.zero[:, g].double()
            out[:, j] = w.scale[:, g].double() * (self.codes[:, j].double() - zero)
        return out


@pytest.fixture
def example() -> Callable[..., Example]:
    def make(n: int, k: int, group: int = 0, symmetric: bool = False, bits: int = 4, seed: int = 0) -> Example:
        g = torch.Generator().manual_seed(seed + 7919 * n + k)
        groups = -(-k // group) if group else 1
        codes = torch.randint(0, 2**bits, (n, k), generator=g, dtype=torch.uint8)
        signs = torch.randint(0, 2, (n, groups), generator=g) * 2 - 1
        scale = ((torch.rand(n, groups, generator=g) * 0.1 + 0.01) * signs).to(torch.bfloat16)
        zero = None if symmetric else torch.randint(0, 2**bits, (n, groups), generator=g, dtype=torch.uint8)
        return Example(PackedWeight.from_codes(codes, scale, zero, bits, group), codes)

    return make


@pytest.fixture
def paley() -> Callable[[int], Tensor]:
    """Hadamard matrix of order q + 1 from the quadratic residues of a prime q = 3 mod 4 (Paley I)."""

    def make(q: int) -> Tensor:
        residues = {(i * i) % q for i in range(1, q)}
        h = torch.ones(q + 1, q + 1)
        for i in range(q):
            for j in range(q):
                h[i + 1, j + 1] = 1 if i == j or (j - i) % q in residues else -1
            h[i + 1, 0] = -1
        assert torch.equal(h @ h.T, (q + 1) * torch.eye(q + 1)), "not a Hadamard matrix"
        return h

    return make
