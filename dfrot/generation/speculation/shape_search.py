"""Which tree shapes are worth measuring: candidates, measured most promising first, dropped by bounds.

A round costs its draft and its verify pass and gives the acceptance length that the draft's record promises
(dfrot/generation/speculation/acceptance_rates.py). Only few shapes are measured: the most promising one is next. A
shape whose upper bound is below what another one was measured to give is never measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dfrot.generation.speculation.acceptance_rates import expected_tau
from dfrot.generation.speculation.latency_probe import Latencies
from dfrot.generation.speculation.tree import TreeShape

MAX_DEPTH = 6  # levels of draft tokens that are tried
MAX_ROWS = 16  # rows of a verify pass that are tried: what one native call serves
TOPKS = (2, 3, 4)  # children per node that are tried
TOTALS = (4, 6, 8, 10, 12, 16)  # nodes of trees that are tried
WORTH = 1.01  # factor by which a shape's bound must exceed the best known speedup to be measured
LINEAR = 0.9  # a cost is at least this share of what straight lines through measured costs give
MIN_BUDGET = 0.25  # seconds that measuring may take in any case
SAME_TAU = 1e-9  # differences of acceptance lengths below this are rounding


@dataclass(frozen=True)
class MeasuredShape:
    """A shape and its measured durations, in seconds."""

    shape: TreeShape
    draft: float
    """Of drafting a tree."""
    verify: float
    """Of the verify pass."""
    step: float
    """Of a plain step behind the same text."""

    @property
    def plain(self) -> float:
        """Duration of a plain step, at most that of the verify pass, which computes the same row and others. Only a
        disturbed measurement says otherwise."""
        return min(self.step, self.verify)

    @property
    def cost(self) -> float:
        """A round in plain steps."""
        return (self.draft + self.verify) / self.plain

    def speedup(self, rates: Sequence[Sequence[float]]) -> float:
        """Expected tokens per second, relative to plain decoding."""
        return expected_tau(self.shape, rates) * self.plain / (self.draft + self.verify)

    def to_dict(self, rates: Sequence[Sequence[float]]) -> dict[str, Any]:
        """JSON: the shape, its durations in milliseconds, and what `rates` promise."""
        return {
            "shape": self.shape.name,
            "expected_tau": expected_tau(self.shape, rates),
            "expected_speedup": self.speedup(rates),
            "step_ms": 1e3 * self.step,
            "draft_ms": 1e3 * self.draft,
            "verify_ms": 1e3 * self.verify,
        }


def candidates(ranked: bool, max_depth: int = MAX_DEPTH, max_rows: int = MAX_ROWS) -> list[TreeShape]:
    """Chains, and where rates by rank are known trees, with verify passes of at most `max_rows` rows."""
    max_depth = min(max_depth, max_rows - 1)
    shapes = [TreeShape(depth) for depth in range(1, max_depth + 1)]
    if ranked:
        for depth in range(2, max_depth + 1):
            for topk in TOPKS:
                drafted_nodes = 1 + topk + (depth - 1) * topk * topk
                totals = [total for total in TOTALS if depth + 1 < total <= min(max_rows, drafted_nodes)]
                shapes += [TreeShape(depth, topk, total) for total in totals]
    return shapes


def measured(
    costs: Latencies,
    rates: Sequence[Sequence[float]],
    shapes: Sequence[TreeShape],
    spent: Callable[[], float] | None = None,
    budget: float = 0.0,
) -> list[MeasuredShape]:
    """The shapes that may be the best, with their measured durations.

    Args:
        costs: measures.
        rates: acceptance rates by step and rank.
        shapes: candidates.
        spent: a function that returns how many seconds measuring took so far; None for no limit.
        budget: the limit, in durations of a plain step (at least MIN_BUDGET seconds). Beyond it nothing more is
            measured, except for the first shape, the shortest chain.
    """
    taus = _distinct(shapes, rates)
    waiting = sorted(taus, key=lambda shape: (shape.nodes, shape.topk, shape.depth))
    results: list[MeasuredShape] = []
    best = 1.0
    while waiting:
        shape = waiting[0]
        if results:
            estimates = {shape: _estimate(shape, taus[shape], results) for shape in waiting}
            waiting = [shape for shape in waiting if estimates[shape][1] > WORTH * best]
            if not waiting or (spent is not None and spent() > max(MIN_BUDGET, budget * costs.step)):
                break
            shape = max(waiting, key=lambda shape: estimates[shape][0])
        waiting.remove(shape)
        results.append(MeasuredShape(shape, costs.draft(shape), costs.verify(shape), costs.step))
        best = max(best, taus[shape] * results[-1].plain / (results[-1].draft + results[-1].verify))
    return results


def _distinct(shapes: Sequence[TreeShape], rates: Sequence[Sequence[float]]) -> dict[TreeShape, float]:
    """Shapes and their acceptance lengths. Of shapes with as many levels and nodes, which cost the same, the best."""
    best: dict[tuple[int, int, bool], tuple[TreeShape, float]] = {}
    for shape in shapes:
        tau = expected_tau(shape, rates)
        key = (shape.depth, shape.nodes, shape.topk > 1)
        if key not in best or tau > best[key][1] + SAME_TAU:
            best[key] = (shape, tau)
    return dict(best.values())


def _estimate(shape: TreeShape, tau: float, results: Sequence[MeasuredShape]) -> tuple[float, float]:
    """The speedup to expect of an unmeasured shape, by straight lines through measured costs, and an upper bound: a
    little more than that, and no more than follows from costs that grow with nodes and with levels."""
    step, nodes = min(result.plain for result in results), shape.nodes
    by_nodes = sorted({1: step, **{result.shape.nodes: result.verify for result in results}}.items())
    (a, low), (b, high) = next((pair for pair in pairwise(by_nodes) if pair[1][0] >= nodes), tuple(by_nodes[-2:]))
    verify = max(low + (high - low) * (nodes - a) / (b - a), low)
    draft_per_level = min(result.draft / result.shape.depth for result in results)
    expected = tau * step / (verify + draft_per_level * shape.depth)
    smaller = [result.verify for result in results if result.shape.nodes <= nodes]
    shorter = [r.draft for r in results if r.shape.depth <= shape.depth and r.shape.topk <= shape.topk]
    least_verify = max([step, *(LINEAR * seconds for seconds in smaller)])
    least_draft = max([LINEAR * seconds for seconds in shorter], default=0.0)
    return expected, min((2 - LINEAR) * expected, tau * step / (least_verify + least_draft))
