"""Finite fields of odd order, as far as Paley's Hadamard matrices need them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def prime_power(q: int) -> tuple[int, int] | None:
    """Return (p, n) with p prime and p**n == q, or None when q is no prime power."""
    if q < 2:
        return None
    p = next((divisor for divisor in range(2, int(q**0.5) + 1) if q % divisor == 0), q)
    n, quotient = 0, q
    while quotient % p == 0:
        quotient //= p
        n += 1
    return (p, n) if quotient == 1 else None


def _multiply(a: list[int], b: list[int], p: int) -> list[int]:
    """Product of two polynomials over GF(p), given by their coefficients, lowest degree first."""
    product = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            product[i + j] = (product[i + j] + x * y) % p
    return product


def _remainder(a: list[int], modulus: list[int], p: int) -> list[int]:
    """Remainder of polynomial `a` divided by the monic polynomial `modulus` over GF(p)."""
    a, n = a[:], len(modulus) - 1
    for degree in range(len(a) - 1, n - 1, -1):
        lead = a[degree]
        for k in range(n + 1):
            a[degree - n + k] = (a[degree - n + k] - lead * modulus[k]) % p
    return (a + [0] * n)[:n]


def _irreducible(p: int, n: int) -> list[int]:
    """The first monic irreducible polynomial of degree n: it has no monic divisor of degree up to n/2."""
    for tail in itertools.product(range(p), repeat=n):
        candidate = [*tail, 1]
        divisors = ([*low, 1] for degree in range(1, n // 2 + 1) for low in itertools.product(range(p), repeat=degree))
        if all(any(_remainder(candidate, divisor, p)) for divisor in divisors):
            return candidate
    raise AssertionError("an irreducible polynomial of every degree exists")


def jacobsthal(q: int) -> Tensor:
    """The Jacobsthal matrix Q of GF(q): float64 [q, q], Q[i, j] = chi(a_i - a_j), chi the quadratic character.

    Raises ValueError unless q is a power of an odd prime."""
    factors = prime_power(q)
    if factors is None or factors[0] == 2:
        raise ValueError(f"{q} is not a power of an odd prime")
    p, n = factors
    weights = p ** torch.arange(n)
    digits = torch.arange(q).unsqueeze(1) // weights % p  # element i is the polynomial with these coefficients
    modulus = _irreducible(p, n)
    chi = torch.full((q,), -1.0, dtype=torch.float64)
    for element in digits.tolist():
        square = _remainder(_multiply(element, element, p), modulus, p)
        chi[sum(coefficient * p**k for k, coefficient in enumerate(square))] = 1.0
    chi[0] = 0.0
    difference = (digits.unsqueeze(1) - digits.unsqueeze(0)) % p
    return chi[(difference * weights).sum(dim=2)]
