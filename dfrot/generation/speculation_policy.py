"""Which shape a round takes, plain decoding among them: the best expected speedup on this machine for this text.

A round costs its draft and its verify pass, and gives the acceptance length that the draft's record promises
(dfrot/generation/acceptance_rates.py). Costs are measured for few shapes: the most promising is measured next,
and one whose bound lies below what another was measured to give never is. While a text is decoded the acceptance that
is seen corrects the promise, and the choice with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dfrot.generation.acceptance_rates import AcceptanceRates, expected_tau, scaled
from dfrot.generation.latency_probe import Latencies
from dfrot.generation.tree import Tree, TreeShape

DEEPEST = 6
ROWS = 16  # nodes of a verify pass: what one native call serves
TOTALS = (4, 6, 8, 10, 12, 16)
MARGIN = 1.05  # a gain below this is within the noise of the measurement
LINEAR = 0.9  # of what lines through measured costs say, a cost is at least
WORTH = 1.01  # what a measurement must promise over the best known shape
LEAST = 0.25  # seconds that measuring may take in any case
AGAIN = 16  # rounds between looks at what was seen
PRIOR = 8.0  # guesses expected to stand that the record weighs as much as


@dataclass(frozen=True)
class MeasuredShape:
    """A measured shape: seconds of draft and verify pass, and the plain step at the same place."""

    shape: TreeShape
    draft: float
    verify: float
    step: float

    @property
    def plain(self) -> float:
        """Seconds of a plain step: no more than a pass that computes the same row and others, which only a disturbed
        measurement can say."""
        return min(self.step, self.verify)

    def speedup(self, rates: Sequence[Sequence[float]]) -> float:
        """Expected tokens per second over plain decoding's."""
        return expected_tau(self.shape, rates) * self.plain / (self.draft + self.verify)

    def to_dict(self, rates: Sequence[Sequence[float]]) -> dict[str, Any]:
        return {
            "shape": self.shape.name,
            "expected_tau": expected_tau(self.shape, rates),
            "expected_speedup": self.speedup(rates),
            "step_ms": 1e3 * self.step,
            "draft_ms": 1e3 * self.draft,
            "verify_ms": 1e3 * self.verify,
        }


def candidates(ranked: bool, deepest: int = DEEPEST, rows: int = ROWS) -> list[TreeShape]:
    """Chains, and trees where chances by rank are known; of at most `rows` nodes, the root counted."""
    deepest = min(deepest, rows - 1)
    found = [TreeShape(depth) for depth in range(1, deepest + 1)]
    if ranked:
        for depth in range(2, deepest + 1):
            for topk in (2, 3, 4):
                most = 1 + topk + (depth - 1) * topk * topk
                found += [TreeShape(depth, topk, n) for n in TOTALS if depth + 1 < n <= min(rows, most)]
    return found


def measured(
    costs: Latencies,
    rates: Sequence[Sequence[float]],
    shapes: Sequence[TreeShape],
    spent: Callable[[], float] | None = None,
    budget: float = 0.0,
) -> list[MeasuredShape]:
    """The shapes that may be the best, with their costs. spent: a function that says how many seconds measuring took
    so far; beyond the time of `budget` plain steps nothing is measured (but for the first shape, the shortest
    chain)."""
    taus = _distinct(shapes, rates)
    waiting = sorted(taus, key=lambda shape: (_size(shape), shape.topk, shape.depth))
    found: list[MeasuredShape] = []
    best = 1.0
    while waiting:
        shape = waiting[0]
        if found:
            promised = {one: _promise(one, taus[one], found) for one in waiting}
            waiting = [one for one in waiting if promised[one][1] > WORTH * best]
            if not waiting or (spent is not None and spent() > max(LEAST, budget * costs.step)):
                break
            shape = max(waiting, key=lambda one: promised[one][0])
        waiting.remove(shape)
        found.append(MeasuredShape(shape, costs.draft(shape), costs.verify(shape), costs.step))
        best = max(best, taus[shape] * found[-1].plain / (found[-1].draft + found[-1].verify))
    return found


def _distinct(shapes: Sequence[TreeShape], rates: Sequence[Sequence[float]]) -> dict[TreeShape, float]:
    """Shapes and their acceptance lengths: of those that cost the same, with as many levels and nodes, the best one."""
    kept: dict[tuple[int, int, bool], tuple[TreeShape, float]] = {}
    for shape in shapes:
        tau = expected_tau(shape, rates)
        key = (shape.depth, _size(shape), shape.topk > 1)
        if key not in kept or tau > kept[key][1] + 1e-9:
            kept[key] = (shape, tau)
    return dict(kept.values())


def _size(shape: TreeShape) -> int:
    return shape.depth + 1 if shape.topk == 1 else shape.total


def _promise(shape: TreeShape, tau: float, found: Sequence[MeasuredShape]) -> tuple[float, float]:
    """The speedup that lines through what was measured promise, and one that the shape will not exceed: a little more,
    and no more than costs allow that grow with nodes and with levels."""
    step, size = min(one.plain for one in found), _size(shape)
    rows = sorted({1: step, **{_size(one.shape): one.verify for one in found}}.items())
    (a, low), (b, high) = next((pair for pair in pairwise(rows) if pair[1][0] >= size), (rows[-2], rows[-1]))
    verify = max(low + (high - low) * (size - a) / (b - a), low)
    each = min(one.draft / one.shape.depth for one in found)
    likely = tau * step / (verify + each * shape.depth)
    passes = [one.verify for one in found if _size(one.shape) <= size]
    shorter = [one.draft for one in found if one.shape.depth <= shape.depth and one.shape.topk <= shape.topk]
    least = max([step, *(LINEAR * one for one in passes)]) + max([LINEAR * one for one in shorter], default=0.0)
    return likely, min((2 - LINEAR) * likely, tau * step / least)


class AdaptivePolicy:
    """The choice for one text. `options` may be shared between texts: they are measured once, where they are missing
    when the text begins."""

    def __init__(
        self, rates: AcceptanceRates | None, greedy: bool, budget: float, options: Sequence[MeasuredShape] = ()
    ) -> None:
        """budget: plain steps in whose time shapes may be measured. Without rates decoding is plain."""
        self.rates, self.greedy, self.budget = rates, greedy, budget
        self.options: list[MeasuredShape] = list(options)
        self.seconds = 0.0  # that measuring took
        self.shape: TreeShape | None = None
        self.gain = 1.0  # expected of `shape`, or of the best one where none pays
        self.expected, self.stood = PRIOR, PRIOR  # guesses
        self.rounds = 0
        self.began: tuple[TreeShape | None, float] = (None, 0.0)  # the first choice, and what was expected of it
        self.turns: list[tuple[int, str]] = []  # (round, what is done from there on)

    @property
    def known(self) -> tuple[tuple[float, ...], ...]:
        """The record's rates."""
        return () if self.rates is None else self.rates.of(self.greedy)

    @property
    def table(self) -> tuple[tuple[float, ...], ...]:
        """Rates of this text: the record's times how often guesses stood, over how often they should have."""
        return scaled(self.known, self.stood / self.expected)

    @property
    def measures(self) -> bool:
        """Whether `start` wants costs."""
        return self.rates is not None and not self.options

    def start(
        self,
        costs: Latencies | None = None,
        spent: Callable[[], float] | None = None,
        deepest: int = DEEPEST,
        rows: int = ROWS,
    ) -> None:
        """Choose; costs: measured where `measures` says so. deepest and rows: what the context has room for."""
        if self.measures and costs is not None and self.rates is not None and min(deepest, rows - 1) > 0:
            shapes = candidates(self.rates.ranked, min(deepest, DEEPEST), min(rows, ROWS))
            self.options = measured(costs, self.table, shapes, spent, self.budget)
            self.seconds = 0.0 if spent is None else spent()
        self._choose()
        self.began = (self.shape, self.gain)

    def why(self) -> str:
        """What was chosen at first and for what reason, and what became of it, in one line."""
        if self.rates is None:
            return "plain: the draft's record does not say how often its guesses stand; give --chain or --tree"
        shape, gain = self.began
        trees = "" if self.rates.ranked else ", chains only: the draft's record has no ranks, train it again for trees"
        count = f"{len(self.options)} shape{'s' * (len(self.options) != 1)}"
        measured_in = f", {count} measured in {self.seconds:.2f} s" if self.seconds else ""
        if shape is None:
            return f"plain: drafting does not pay here (best expected speedup {gain:.2f}{measured_in}{trees})"
        turns = "".join(f", {name} from round {number} on" for number, name in self.turns)
        return f"speculative, {shape.name} (expected speedup {gain:.2f}{measured_in}{trees}){turns}"

    def to_dict(self) -> dict[str, Any]:
        """JSON: the first choice, every measured shape with its costs, and later turns."""
        shape, gain = self.began
        return {
            "shape": None if shape is None else shape.name,
            "expected_speedup": gain,
            "trees_considered": self.rates is not None and self.rates.ranked,
            "seconds": self.seconds,
            "measured": [one.to_dict(self.known) for one in self.options],
            "turns": [{"round": number, "shape": name} for number, name in self.turns],
            "acceptance_over_record": self.stood / self.expected,
        }

    @property
    def widest(self) -> int:
        """Slots that drafts of any candidate take."""
        return max(shape.depth * shape.topk for shape in candidates(True))

    def saw(self, tree: Tree, path: Sequence[int]) -> None:
        """A round's tree and the nodes that were accepted, the root first."""
        known = self.known
        for depth, node in enumerate(path):
            if known and (children := len(tree.children(node))):
                self.expected += sum(known[min(depth, len(known) - 1)][:children])
                self.stood += node != path[-1]
        self.rounds += 1
        if self.rounds % AGAIN == 0 and self._choose():
            self.turns.append((self.rounds, "plain" if self.shape is None else self.shape.name))

    def _choose(self) -> bool:
        """Take the best measured shape, or none; True if that is another than before."""
        before, table = self.shape, self.table
        gains = {one.shape: one.speedup(table) for one in self.options}
        best = max(gains, key=lambda shape: gains[shape], default=None)
        self.gain = 0.0 if best is None else gains[best]
        least = MARGIN if self.rounds == 0 else 1.0  # who drafts already goes on until it costs
        if best is None or self.gain < least:
            self.shape = None
        elif before is None or self.rounds == 0 or self.gain > WORTH * gains[before]:
            self.shape = best
        return self.shape != before
