"""Choosing what gets more bits under a budget: the 0/1 knapsack, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

UNITS = 20_000  # of capacity: weights are rounded up to a multiple of capacity / UNITS


def best_choice(gains: Sequence[float], weights: Sequence[int], capacity: int) -> list[int]:
    """Indices, ascending, of the items with the largest sum of `gains` whose `weights` sum to at most `capacity`.

    Exact where the weights have a common divisor of at least capacity / UNITS, as those of equal blocks have; else
    weights are rounded up. Items that gain nothing are left out."""
    unit = max(math.gcd(*weights, 0), -(-capacity // UNITS), 1)
    room = capacity // unit
    best = torch.zeros(room + 1, dtype=torch.float64)
    taken: list[torch.Tensor] = []
    for gain, weight in zip(gains, weights):
        size = -(-weight // unit)
        takes = torch.zeros(room + 1, dtype=torch.bool)
        if gain > 0 and size <= room:
            with_item = best[: room + 1 - size] + gain
            takes[size:] = with_item > best[size:]
            best = torch.cat([best[:size], torch.maximum(best[size:], with_item)])
        taken.append(takes)
    chosen: list[int] = []
    for number in reversed(range(len(taken))):
        if bool(taken[number][room]):
            chosen.append(number)
            room -= -(-weights[number] // unit)
    return chosen[::-1]
