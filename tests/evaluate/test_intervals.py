"""Student t intervals: coverage, pairing, degenerate cases."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from dfrot.errors import MismatchError
from dfrot.evaluate.intervals import mean_interval, perplexity_interval, ratio_interval


def test_matches_scipy() -> None:
    values = torch.tensor([2.0, 2.5, 2.2, 3.1, 2.7], dtype=torch.float64)
    mean, interval = mean_interval(values, 0.9)
    expected = stats.t.interval(0.9, 4, loc=values.mean(), scale=stats.sem(values.numpy()))
    assert mean == pytest.approx(2.5)
    assert interval == pytest.approx(expected)


def test_covers_as_often_as_it_says() -> None:
    draws = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    hits = 0
    for row in draws:
        _, interval = mean_interval(row, 0.8)
        assert interval is not None
        hits += interval[0] <= 3 <= interval[1]
    assert abs(hits / 2000 - 0.8) < 0.03


def test_perplexity_is_exp_of_the_mean_loss() -> None:
    value, interval = perplexity_interval(torch.tensor([1.0, 3.0]))
    assert value == pytest.approx(math.exp(2))
    assert interval is not None
    assert interval[0] < value < interval[1]


def test_pairing_removes_what_windows_share() -> None:
    generator = torch.Generator().manual_seed(1)
    hard = 3 + torch.randn(40, generator=generator)  # windows differ a lot
    other = hard + 0.02 + 0.001 * torch.randn(40, generator=generator)
    ratio, interval = ratio_interval(other, hard)
    assert ratio == pytest.approx(math.exp(0.02), abs=1e-3)
    assert interval is not None
    assert 1.0 < interval[0] < interval[1] < 1.022
    _, wide = perplexity_interval(hard)
    assert wide is not None
    assert interval[1] - interval[0] < 0.01 * (wide[1] - wide[0])


def test_one_window_has_no_interval() -> None:
    assert perplexity_interval(torch.tensor([2.0]))[1] is None
    value, interval = perplexity_interval(torch.tensor([900.0, 900.0]))
    assert math.isfinite(value)
    assert interval is None
    with pytest.raises(MismatchError, match="windows"):
        ratio_interval(torch.ones(3), torch.ones(4))
