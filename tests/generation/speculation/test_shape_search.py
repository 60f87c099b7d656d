"""Which shapes are measured: the best one always, and no more than the budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from dfrot.generation.speculation.acceptance_rates import expected_tau
from dfrot.generation.speculation.shape_search import MeasuredShape, candidates, measured
from dfrot.generation.speculation.tree import TreeShape

RATES = ((0.8, 0.1, 0.04, 0.02),)  # by rank, at every step


@dataclass(frozen=True)
class FormulaCosts:
    """Latencies by formula; remembers which shapes were measured."""

    row: float
    level: float
    step: float = 1.0
    measured: list[TreeShape] = field(default_factory=list)

    def verify(self, shape: TreeShape) -> float:
        self.measured.append(shape)
        return self.step + self.row * ((shape.depth + 1 if shape.topk == 1 else shape.total) - 1)

    def draft(self, shape: TreeShape) -> float:
        return self.level * shape.depth


def best_of(costs: FormulaCosts, rates: Sequence[Sequence[float]], ranked: bool = True) -> tuple[str, float]:
    best = max(measured(costs, rates, candidates(ranked)), key=lambda result: result.speedup(rates))
    return best.shape.name, best.speedup(rates)


def test_the_best_shape_follows_the_costs() -> None:
    assert best_of(FormulaCosts(0.0, 0.0), [[0.8]], False) == ("chain 6", pytest.approx(sum(0.8**n for n in range(7))))
    assert best_of(FormulaCosts(0.1, 0.1), [[0.8]], False)[0] in ("chain 2", "chain 3", "chain 4", "chain 5")
    assert best_of(FormulaCosts(0.1, 2.0), [[0.8]], False)[1] < 1, "an expensive draft does not pay"
    assert best_of(FormulaCosts(0.0, 0.0), RATES)[0].startswith("tree 6,"), "a draft that costs nothing"
    assert best_of(FormulaCosts(0.5, 0.0), RATES)[0].startswith("chain"), "rows are expensive"
    flat = [[0.4, 0.3, 0.2, 0.1]]
    assert best_of(FormulaCosts(0.02, 0.3), flat)[0].startswith("tree"), "second-rank tokens are good"
    assert expected_tau(TreeShape(2), [[0.5], [0.25]]) == pytest.approx(1 + 0.5 + 0.125)


@pytest.mark.parametrize("row", [0.0, 0.02, 0.1, 0.4])
@pytest.mark.parametrize("level", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("rates", [RATES, ((0.5, 0.15, 0.1, 0.05), (0.3, 0.1, 0.1, 0.1)), ((0.95, 0.02, 0.01, 0.0),)])
def test_unmeasured_shapes_could_not_win(row: float, level: float, rates: Sequence[Sequence[float]]) -> None:
    """Searching finds what measuring everything finds, up to the gain that a measurement must promise."""
    costs = FormulaCosts(row, level)
    name, gain = best_of(costs, rates)
    speedups = [MeasuredShape(s, costs.draft(s), costs.verify(s), costs.step).speedup(rates) for s in candidates(True)]
    count = len(costs.measured) - len(speedups)
    assert gain * 1.011 >= max(speedups), name
    assert count < len(speedups) / 2, "most shapes are not worth measuring"


def test_a_disturbed_plain_step_promises_nothing() -> None:
    """A pass of two rows cannot be faster than one of a row."""
    assert MeasuredShape(TreeShape(1), 0.1, 1.0, 5.0).speedup([[0.05]]) == pytest.approx(1.05 / 1.1)


def test_measuring_ends_with_its_budget() -> None:
    costs, spent = FormulaCosts(0.01, 0.01), 0.0

    def clock() -> float:
        return spent + 2.0 * len(costs.measured)

    assert len(measured(costs, RATES, candidates(True), clock, budget=3.0)) == 2
