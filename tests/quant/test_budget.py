"""The knapsack behind `--budget`."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from dfrot.quant.budget import UNITS, best_choice


def total(values: list[float] | list[int], chosen: tuple[int, ...] | list[int]) -> float:
    return float(sum(values[number] for number in chosen))


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_gains_more(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gains = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
    weights = [6 * weight for weight in torch.randint(1, 9, (9,), generator=generator).tolist()]
    for capacity in (0, 5, 6, 50, 100, sum(weights)):
        chosen = best_choice(gains, weights, capacity)
        fitting = [
            choice
            for size in range(10)
            for choice in combinations(range(9), size)
            if total(weights, choice) <= capacity
        ]
        assert total(weights, chosen) <= capacity
        assert total(gains, chosen) == pytest.approx(max(total(gains, choice) for choice in fitting))


def test_what_gains_nothing_is_left_out() -> None:
    assert best_choice([0.0, -1.0, 2.0], [1, 1, 1], 3) == [2]
    assert best_choice([], [], 3) == []


def test_weights_without_a_common_divisor_stay_within_capacity() -> None:
    weights = [10**9 + 7, 10**9 + 9, 10**9 + 21, 998244353]
    capacity = 2 * 10**9 + UNITS
    chosen = best_choice([1.0, 1.1, 1.2, 0.9], weights, capacity)
    assert len(chosen) == 2
    assert total(weights, chosen) <= capacity
