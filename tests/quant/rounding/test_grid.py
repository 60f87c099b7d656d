from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfrot.quant.rounding.grid import fit

SHAPES = [(1, 1, 0), (3, 63, 0), (5, 64, 16), (7, 100, 32), (4, 8, 64)]


@pytest.mark.parametrize(("n", "k", "group"), SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_nearest_grid_point_is_chosen(n: int, k: int, group: int, symmetric: bool, bits: int) -> None:
    """Against every grid point, enumerated in float64."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    grid = fit(weight, bits, symmetric, group)
    codes = grid.encode(weight)
    assert grid.scale.shape == (n, -(-k // group) if group else 1)
    assert grid.scale.dtype == torch.bfloat16
    assert (grid.zero is None) == symmetric
    levels = torch.arange(2**bits, dtype=torch.float64)
    for column in range(k):
        g = column // group if group else 0
        zero = 2 ** (bits - 1) if grid.zero is None else grid.zero[:, g, None].double()
        points = grid.scale[:, g, None].double() * (levels - zero)
        best = (points - weight[:, column, None].double()).abs().min(1).values
        mine = points.gather(1, codes[:, column, None].long()).squeeze(1)
        torch.testing.assert_close((mine - weight[:, column]).abs(), best, rtol=1e-5, atol=1e-7)
        assert torch.equal(grid.decode(codes)[:, column].double(), mine)  # exact, not close


@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), symmetric=st.booleans(), power=st.integers(-30, 30))
@settings(max_examples=60, deadline=None)
def test_rounding_is_idempotent_and_bounded(seed: int, bits: int, symmetric: bool, power: int) -> None:
    weight = torch.randn(4, 24, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    grid = fit(weight, bits, symmetric, 8)
    once = grid.round(weight)
    assert torch.equal(grid.round(once), once)
    # half a step, plus what rounding the scale to 8 bits and the zero code to an integer can cost at the ends
    step = grid.steps(torch.arange(24))
    assert bool(((once - weight).abs() <= step * (0.5 + 2.0**-8 * 2**bits + (0 if symmetric else 0.5))).all())


def test_symmetric_grid_leaves_code_zero_unused_and_hits_the_extreme() -> None:
    weight = torch.tensor([[-7.0, 3.0, 0.0, 1.4]])
    grid = fit(weight, 4, True)
    assert grid.encode(weight).tolist() == [[1, 11, 8, 9]]
    assert grid.scale.item() == 1.0


def test_signed_grid_gives_the_extreme_code_zero_whatever_its_sign() -> None:
    weight = torch.tensor([[8.0, -3.0, 0.0, -7.0], [-8.0, 3.0, 0.0, 7.0], [0.0, 0.0, 0.0, 0.0]])
    grid = fit(weight, 4, True, signed=True)
    assert grid.scale.flatten().tolist() == [-1.0, 1.0, 1.0]
    assert grid.encode(weight).tolist() == [[0, 11, 8, 15], [0, 11, 8, 15], [8, 8, 8, 8]]
    assert torch.equal(grid.round(weight), weight)


def test_signed_scales_lower_the_error() -> None:
    """The extreme is 8 steps from zero and not 7."""
    weight = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))
    plain, signed = ((fit(weight, 4, True, signed=way).round(weight) - weight).square().sum() for way in (False, True))
    assert float(signed / plain) == pytest.approx((7 / 8) ** 2, rel=0.1)


def test_codes_derive_from_the_stored_scale() -> None:
    """A weight between two codes of the exact scale falls where the bfloat16 scale says."""
    top = 7 * 1.0037  # the exact scale 1.0037 is stored as 1.0
    weight = torch.tensor([[top, 1.5035, 2.5]])
    grid = fit(weight, 4, True)
    assert grid.scale.item() == 1.0
    assert grid.encode(weight).tolist() == [[15, 10, 10]]  # 1.5035 / 1.0037 would round to 1; 2.5 goes to even


def test_zero_rows_and_subnormal_rows_are_zero() -> None:
    weight = torch.tensor([[0.0, 0.0], [1e-42, -1e-43]])
    for symmetric in (True, False):
        grid = fit(weight, 4, symmetric)
        assert torch.equal(grid.round(weight), torch.zeros(2, 2))


def test_asymmetric_range_includes_zero() -> None:
    weight = torch.tensor([[5.0, 20.0, 12.0], [-20.0, -5.0, -12.0]])
    grid = fit(weight, 4, False)
    assert grid.zero is not None
    assert grid.zero.flatten().tolist() == [0, 15]
    assert torch.equal(grid.round(torch.zeros(2, 3)), torch.zeros(2, 3))
