"""Finite fields of odd order, as far as Paley's Hadamard matrices need them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, n) with p prime and p**n == q, or None."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    n, rest = 0, q
    while rest % p == 0:
        rest //= p
        n += 1
    return (p, n) if rest == 1 else None


def _times(a: list[int], b: list[int], p: int) -> list[int]:
    """Product of two polynomials over GF(p); coefficients lowest first."""
    out = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] = (out[i + j] + x * y) % p
    return out


def _modulo(a: list[int], modulus: list[int], p: int) -> list[int]:
    """Remainder of `a` by a monic polynomial."""
    a, n = a[:], len(modulus) - 1
    for top in range(len(a) - 1, n - 1, -1):
        lead = a[top]
        for k in range(n + 1):
            a[top - n + k] = (a[top - n + k] - lead * modulus[k]) % p
    return (a + [0] * n)[:n]


def _irreducible(p: int, n: int) -> list[int]:
    """The first monic irreducible polynomial of degree n: no monic divisor of degree up to n/2."""
    for tail in itertools.product(range(p), repeat=n):
        candidate = [*tail, 1]
        divisors = ([*low, 1] for degree in range(1, n // 2 + 1) for low in itertools.product(range(p), repeat=degree))
        if all(any(_modulo(candidate, divisor, p)) for divisor in divisors):
            return candidate
    raise AssertionError("an irreducible polynomial of every degree exists")


def jacobsthal(q: int) -> Tensor:
    """Q [q, q] float64 with Q[i, j] = chi(a_i - a_j), chi the quadratic character of GF(q), q an odd prime power."""
    found = prime_power(q)
    if found is None or found[0] == 2:
        raise ValueError(f"{q} is not a power of an odd prime")
    p, n = found
    weights = p ** torch.arange(n)
    digits = torch.arange(q).unsqueeze(1) // weights % p  # element i = polynomial with these coefficients
    modulus = _irreducible(p, n)
    chi = torch.full((q,), -1.0, dtype=torch.float64)
    for element in digits.tolist():
        square = _modulo(_times(element, element, p), modulus, p)
        chi[sum(c * p**k for k, c in enumerate(square))] = 1.0
    chi[0] = 0.0
    difference = (digits.unsqueeze(1) - digits.unsqueeze(0)) % p
    return chi[(difference * weights).sum(dim=2)]
