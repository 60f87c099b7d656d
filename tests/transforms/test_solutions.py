"""What transforms compute: the optimum they claim, on random moments, and moments that equal their definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.transforms import TRANSFORMS, parse_transform
from dfrot.transforms.moments import ChannelMoments, VectorMoments
from dfrot.transforms.up_down import balance, energy_ratio
from dfrot.transforms.value_heads import balancing_matrix


def random_positive(size: int, seed: int) -> Tensor:
    rows = torch.randn(3 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows *= torch.logspace(-1, 1, size, dtype=torch.float64)
    return rows.T @ rows


def test_balance_has_the_smallest_product_of_energies() -> None:
    generator = torch.Generator().manual_seed(0)
    activation, weight = (torch.randn(2, 50, dtype=torch.float64, generator=generator)).exp()
    factor = balance(activation, weight)
    best = energy_ratio(activation, weight, factor)
    assert best < 0.9
    bound = (activation * weight).sqrt().sum().square() / (activation.sum() * weight.sum())  # Cauchy-Schwarz
    assert best == pytest.approx(float(bound), rel=1e-9)
    assert float(factor.log().mean()) == pytest.approx(0, abs=1e-9)


def test_a_dead_channel_is_scaled_within_limits() -> None:
    activation = torch.tensor([0.0, 1.0, 1e30], dtype=torch.float64)
    factor = balance(activation, torch.ones(3, dtype=torch.float64))
    assert bool(torch.isfinite(factor).all())
    assert bool(((factor >= 1 / 64) & (factor <= 64)).all())


def test_the_balancing_matrix_makes_both_sides_equal_and_diagonal() -> None:
    activation, weight = random_positive(8, 0), random_positive(8, 1).flip(0, 1)
    matrix = balancing_matrix(activation, weight, 0.0)
    inverse = torch.linalg.inv(matrix)
    first, second = matrix.T @ activation @ matrix, inverse @ weight @ inverse.T
    assert torch.allclose(first, second, atol=1e-6)
    assert torch.allclose(first, first.diagonal().diag(), atol=1e-6)


def test_no_matrix_nearby_is_better_than_the_damped_one() -> None:
    activation, weight = random_positive(8, 0), random_positive(8, 1).flip(0, 1)

    def product(matrix: Tensor) -> float:
        inverse = torch.linalg.inv(matrix)
        return float((matrix.T @ activation @ matrix).trace() * (inverse @ weight @ inverse.T).trace())

    matrix = balancing_matrix(activation, weight)
    assert product(matrix) < 0.9 * product(torch.eye(8, dtype=torch.float64))
    noise = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for step in (-0.1, 0.1):
        assert product(matrix @ torch.linalg.matrix_exp(step * noise)) > product(matrix)


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_vectors(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 30, 4, generator=generator) + 1
    weight = torch.rand(1, 30, generator=generator) if weighted else torch.ones(1, 30)
    moments = VectorMoments(2, 4)
    for part in (slice(0, 11), slice(11, 30)):
        moments.add(rows[:, part], weight[:, part] if weighted else None)
    share = (weight / weight.sum()).double()
    mean = (rows.double() * share[..., None]).sum(1)
    assert torch.allclose(moments.mean, mean, atol=1e-6)
    for center in (torch.zeros_like(mean), mean, mean + 0.5):
        off = rows.double() - center[:, None]
        expected = (off * share[..., None]).mT @ off
        assert torch.allclose(moments.covariance(center), expected, atol=1e-5)


def test_moments_of_channels_count_every_token_alike() -> None:
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    small, large = ChannelMoments(6), ChannelMoments(6)
    small.add(rows)
    large.add(rows * torch.logspace(-3, 3, 20)[:, None])
    assert torch.allclose(small.square, large.square, rtol=1e-4)
    assert float(small.square.sum()) == pytest.approx(20, rel=1e-5)


def test_names_are_parsed_and_near_ones_suggested() -> None:
    for name, transform in TRANSFORMS.items():
        assert parse_transform(name) == (transform, transform.modes[0])
        assert parse_transform(f"{name}:{transform.modes[-1]}") == (transform, transform.modes[-1])
    with pytest.raises(InputError, match="nearest: up-down:rms"):
        parse_transform("updown")
    with pytest.raises(InputError, match="unknown"):
        parse_transform("up-down:median")
