"""The fast transform against the explicit matrix."""

from __future__ import annotations

import math

import pytest
import torch

SYLVESTER = [1, 2, 4, 8, 16, 64, 128, 1024]
ONE = torch.ones(1, 1)


def explicit(base: torch.Tensor, block: int) -> torch.Tensor:
    """base (x) Sylvester(block / order), normalised, float64."""
    s = torch.ones(1, 1, dtype=torch.float64)
    while s.shape[0] * base.shape[0] < block:
        s = torch.cat((torch.cat((s, s), 1), torch.cat((s, -s), 1)), 0)
    return torch.kron(base.double(), s) / math.sqrt(block)


def apply(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x.double().unflatten(-1, (-1, h.shape[0])) @ h).flatten(-2)


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.isfinite().all()
    assert (got.double() - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("block", SYLVESTER)
@pytest.mark.parametrize("blocks", [1, 3])
def test_powers_of_two(isa, block, blocks):
    x = torch.randn(5, 2, block * blocks, generator=torch.Generator().manual_seed(block))
    got = torch.ops.dfq.hadamard(x, ONE, block)
    assert got.shape == x.shape
    close(got, apply(explicit(ONE, block), x), 1e-6)


@pytest.mark.parametrize("q", [3, 11, 19])
@pytest.mark.parametrize("power", [1, 2, 4, 8, 16, 64])
def test_bases(isa, paley, q, power):
    base, block = paley(q), (q + 1) * power
    x = torch.randn(7, 2 * block, generator=torch.Generator().manual_seed(block))
    close(torch.ops.dfq.hadamard(x, base, block), apply(explicit(base, block), x), 1e-6)
    # an unsymmetric base: H and its transpose differ, and the transpose undoes it
    back = torch.ops.dfq.hadamard(torch.ops.dfq.hadamard(x, base, block), base.T.contiguous(), block)
    close(back, x.double(), 1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4), (torch.float64, 1e-14)]
)
def test_other_dtypes_are_rounded_once(isa, paley, dtype, tolerance):
    base = paley(11)
    x = torch.randn(3, 768, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = torch.ops.dfq.hadamard(x, base, 768)
    assert got.dtype == dtype
    close(got, apply(explicit(base, 768), x), tolerance)


@pytest.mark.parametrize("block", [1, 12, 128, 768])
def test_orthogonal(isa, paley, block):
    base = paley(11) if block % 12 == 0 else ONE
    h = torch.ops.dfq.hadamard(torch.eye(block), base, block).double()
    assert (h @ h.T - torch.eye(block)).abs().max() < 1e-6


def test_both_sides_of_a_linear_cancel(isa, paley):
    g = torch.Generator().manual_seed(3)
    x, w = torch.randn(6, 24, generator=g), torch.randn(5, 24, generator=g)
    turned = torch.ops.dfq.hadamard(x, paley(11), 12) @ torch.ops.dfq.hadamard(w, paley(11), 12).T
    assert torch.allclose(turned, x @ w.T, atol=1e-5)


def test_views_empty_and_input_untouched(isa):
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(4))
    before = x.clone()
    view = x.T[::2].reshape(2, 4, 4, 6)[..., :4]
    assert not view.is_contiguous()
    assert torch.equal(torch.ops.dfq.hadamard(view, ONE, 4), torch.ops.dfq.hadamard(view.clone(), ONE, 4))
    assert torch.ops.dfq.hadamard(x[:0], ONE, 16).shape == (0, 64)
    shifted = torch.zeros(65)[1:].copy_(x[0])
    assert torch.equal(torch.ops.dfq.hadamard(shifted, ONE, 64), torch.ops.dfq.hadamard(x[0], ONE, 64))
    assert torch.equal(x, before)
