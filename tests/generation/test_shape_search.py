"""Which shapes are measured: the best one always, and no more than the budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from dfrot.generation.acceptance_rates import expected_tau
from dfrot.generation.shape_search import MeasuredShape, candidates, measured
from dfrot.generation.tree import TreeShape

KNOWN = ((0.8, 0.1, 0.04, 0.02),)  # by rank, at every step


@dataclass(frozen=True)
class Made:
    """Costs by formula; remembers what was asked."""

    row: float
    level: float
    step: float = 1.0
    asked: list[TreeShape] = field(default_factory=list)

    def verify(self, shape: TreeShape) -> float:
        self.asked.append(shape)
        return self.step + self.row * ((shape.depth + 1 if shape.topk == 1 else shape.total) - 1)

    def draft(self, shape: TreeShape) -> float:
        return self.level * shape.depth


def best(costs: Made, rates: Sequence[Sequence[float]], ranked: bool = True) -> tuple[str, float]:
    found = max(measured(costs, rates, candidates(ranked)), key=lambda one: one.speedup(rates))
    return found.shape.name, found.speedup(rates)


def test_the_choice_follows_the_costs() -> None:
    assert best(Made(0.0, 0.0), [[0.8]], False) == ("chain 6", pytest.approx(sum(0.8**n for n in range(7))))
    assert best(Made(0.1, 0.1), [[0.8]], False)[0] in ("chain 2", "chain 3", "chain 4", "chain 5")
    assert best(Made(0.1, 2.0), [[0.8]], False)[1] < 1, "an expensive draft does not pay"
    assert best(Made(0.0, 0.0), KNOWN)[0].startswith("tree 6,"), "what costs nothing"
    assert best(Made(0.5, 0.0), KNOWN)[0].startswith("chain"), "rows that cost half a step are not for second guesses"
    flat = [[0.4, 0.3, 0.2, 0.1]]
    assert best(Made(0.02, 0.3), flat)[0].startswith("tree"), "second guesses that are as good as first ones"
    assert expected_tau(TreeShape(2), [[0.5], [0.25]]) == pytest.approx(1 + 0.5 + 0.125)


@pytest.mark.parametrize("row", [0.0, 0.02, 0.1, 0.4])
@pytest.mark.parametrize("level", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("rates", [KNOWN, ((0.5, 0.15, 0.1, 0.05), (0.3, 0.1, 0.1, 0.1)), ((0.95, 0.02, 0.01, 0.0),)])
def test_what_is_not_measured_could_not_win(row: float, level: float, rates: Sequence[Sequence[float]]) -> None:
    """Pruning finds what measuring everything finds, but for the gain that a measurement must promise."""
    costs = Made(row, level)
    name, gain = best(costs, rates)
    every = [MeasuredShape(s, costs.draft(s), costs.verify(s), costs.step).speedup(rates) for s in candidates(True)]
    asked = len(costs.asked) - len(every)
    assert gain * 1.011 >= max(every), name
    assert asked < len(every) / 2, "most shapes are not worth measuring"


def test_a_disturbed_step_promises_nothing() -> None:
    """A pass of two rows cannot be faster than one of a row."""
    assert MeasuredShape(TreeShape(1), 0.1, 1.0, 5.0).speedup([[0.05]]) == pytest.approx(1.05 / 1.1)


def test_measuring_ends_with_its_budget() -> None:
    costs, spent = Made(0.01, 0.01), 0.0

    def clock() -> float:
        return spent + 2.0 * len(costs.asked)

    assert len(measured(costs, KNOWN, candidates(True), clock, budget=3.0)) == 2
