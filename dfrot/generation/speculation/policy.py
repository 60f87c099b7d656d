"""The speculation policy: which tree shape a round uses, or plain decoding, by the best expected speedup.

The first choice rests on measured durations (dfrot/generation/speculation/shape_search.py) and on the acceptance rates
of the draft's record. While a text is decoded, the acceptance observed in it corrects the rates, and the choice with
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dfrot.generation.speculation.acceptance_rates import AcceptanceRates, expected_tau, scaled
from dfrot.generation.speculation.latency_probe import Latencies
from dfrot.generation.speculation.shape_search import (
    MAX_DEPTH,
    MAX_ROWS,
    TOPKS,
    TOTALS,
    WORTH,
    MeasuredShape,
    candidates,
    measured,
)
from dfrot.generation.speculation.tree import Tree, TreeShape

MARGIN = 1.05  # a smaller expected speedup is within the noise of the measurements
ROUNDS_BETWEEN_CHOICES = 16
LARGEST_TREE = TreeShape(MAX_DEPTH, max(TOPKS), max(TOTALS))  # no candidate accepts more
ALLOWANCE = 3.0  # plain steps that a text may lose by drafting before it is given up
ALLOWANCE_SHARE = 0.01  # and this share of the tokens that it drafted
PRIOR = 8.0  # the record's rates weigh as much as this many expected acceptances of the text


class AdaptivePolicy:
    """The policy for one text. `options` may be shared between texts, so that shapes are measured once."""

    def __init__(
        self, rates: AcceptanceRates | None, greedy: bool, budget: float, options: Sequence[MeasuredShape] = ()
    ) -> None:
        """rates: of the draft's record; None decodes plainly. greedy: whether the text is decoded greedily. budget: of
        measuring, in durations of a plain step. options: measured shapes; empty to measure when the text begins."""
        self.rates, self.greedy, self.budget = rates, greedy, budget
        self.options: list[MeasuredShape] = list(options)
        self.seconds = 0.0  # that measuring took
        self.shape: TreeShape | None = None  # of the next round; None is plain decoding
        self.gain = 1.0  # expected speedup of `shape`, or of the best option where none pays
        self.expected, self.accepted = PRIOR, PRIOR  # draft tokens: acceptances expected by the record, and observed
        self.rounds = 0
        self.tokens, self.spent = 0.0, 0.0  # of rounds with draft tokens: tokens, and what they cost in plain steps
        self.first_choice: tuple[TreeShape | None, float] = (None, 0.0)  # and its expected speedup
        self.changes: list[tuple[int, str]] = []  # (round, name of the choice from there on)

    @property
    def recorded_rates(self) -> tuple[tuple[float, ...], ...]:
        """The record's rates by step and rank; empty without a record."""
        return () if self.rates is None else self.rates.of(self.greedy)

    @property
    def text_rates(self) -> tuple[tuple[float, ...], ...]:
        """Rates of this text: the record's, scaled by observed over expected acceptances."""
        return scaled(self.recorded_rates, self.accepted / self.expected)

    @property
    def needs_latencies(self) -> bool:
        """Whether `start` will measure. Nothing is measured for rates that could not pay if drafting cost nothing."""
        return self.rates is not None and not self.options and self.gain_at_most > MARGIN

    @property
    def gain_at_most(self) -> float:
        """A bound on the expected speedup: that of free draft tokens and of verify passes at the cost of a step."""
        if self.rates is None:
            return 0.0
        return expected_tau(LARGEST_TREE if self.rates.ranked else TreeShape(MAX_DEPTH), self.text_rates)

    def start(
        self,
        costs: Latencies | None = None,
        spent: Callable[[], float] | None = None,
        max_depth: int = MAX_DEPTH,
        max_rows: int = MAX_ROWS,
    ) -> None:
        """Make the first choice.

        costs: measures, where `needs_latencies`. spent: returns the seconds that measuring took so far. max_depth,
        max_rows: levels and verify rows that the context has room for."""
        if self.needs_latencies and costs is not None and self.rates is not None and min(max_depth, max_rows - 1) > 0:
            shapes = candidates(self.rates.ranked, min(max_depth, MAX_DEPTH), min(max_rows, MAX_ROWS))
            self.options = measured(costs, self.text_rates, shapes, spent, self.budget)
            self.seconds = 0.0 if spent is None else spent()
        self._choose()
        self.first_choice = (self.shape, self.gain)

    def why(self) -> str:
        """One line: the first choice, its reason, and later changes."""
        if self.rates is None:
            return "plain: the draft's record holds no acceptance rates; give a chain or a tree"
        shape, gain = self.first_choice
        trees = "" if self.rates.ranked else ", chains only: the draft's record has no ranks, train it again for trees"
        count = f"{len(self.options)} shape{'s' * (len(self.options) != 1)}"
        measured_in = f", {count} measured in {self.seconds:.2f} s" if self.seconds else ""
        if shape is None and not self.options and self.gain_at_most <= MARGIN:
            return (
                f"plain: the draft is accepted too rarely (speedup of at most {self.gain_at_most:.2f} if it were free)"
            )
        if shape is None:
            return f"plain: drafting does not pay here (best expected speedup {gain:.2f}{measured_in}{trees})"
        changes = "".join(f", {name} from round {number} on" for number, name in self.changes)
        return f"speculative, {shape.name} (expected speedup {gain:.2f}{measured_in}{trees}){changes}"

    def to_dict(self) -> dict[str, Any]:
        """JSON: the first choice, every measured shape with its durations, and later changes."""
        shape, gain = self.first_choice
        return {
            "shape": None if shape is None else shape.name,
            "expected_speedup": gain,
            "trees_considered": self.rates is not None and self.rates.ranked,
            "seconds": self.seconds,
            "measured": [option.to_dict(self.recorded_rates) for option in self.options],
            "turns": [{"round": number, "shape": name} for number, name in self.changes],
            "acceptance_over_record": self.accepted / self.expected,
        }

    @property
    def max_drafted(self) -> int:
        """Positions of the draft's cache that one round of any candidate takes, at most."""
        return max(shape.drafted for shape in candidates(True))

    def record_round(self, tree: Tree, path: Sequence[int]) -> None:
        """Take note of a round: its tree and the accepted nodes, the root first. May change `shape`."""
        rates = self.recorded_rates
        for depth, node in enumerate(path):
            if rates and (children := len(tree.children(node))):
                self.expected += sum(rates[min(depth, len(rates) - 1)][:children])
                self.accepted += node != path[-1]
        self.rounds += 1
        self.tokens += len(path)
        self.spent += next((option.cost for option in self.options if option.shape == self.shape), 0.0)
        if self.spent - self.tokens > ALLOWANCE + ALLOWANCE_SHARE * self.tokens:
            self.shape = None  # for good: `record_round` is not called again
            self.changes.append((self.rounds, "plain"))
            return
        if self.rounds % ROUNDS_BETWEEN_CHOICES == 0 and self._choose():
            self.changes.append((self.rounds, "plain" if self.shape is None else self.shape.name))

    def _choose(self) -> bool:
        """Take the best measured shape, or none. Returns whether the choice changed."""
        before, rates = self.shape, self.text_rates
        gains = {option.shape: option.speedup(rates) for option in self.options}
        best = max(gains, key=lambda shape: gains[shape], default=None)
        self.gain = 0.0 if best is None else gains[best]
        least = MARGIN if self.rounds == 0 else 1.0  # a text that is drafted already goes on until it costs
        if best is None or self.gain < least:
            self.shape = None
        elif before is None or self.rounds == 0 or self.gain > WORTH * gains[before]:
            self.shape = best
        return self.shape != before
