"""How many looked-up tokens a round verifies: by measured costs, and by how often such tokens are accepted.

A step that finds no match is a plain step. Else n draft tokens are worth

    E(n) - pace * cost(n),    E(n) = 1 + sum over i <= n of r_1 .. r_i,

where cost(n) is the measured verify pass over plain steps and `pace` the tokens per plain step's time of the text so
far. The rate r depends on how many tokens before it agree with the earlier occurrence: the match's length and the draft
tokens accepted before. It starts from averages and is corrected by what the text accepts.

A text whose draft tokens are rejected must not become slow: a round may only spend, beyond what earlier rounds gained,
a fixed allowance and a small share of the tokens written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

from dfrot.generation.speculation.ngram_index import LONGEST_MATCH
from dfrot.generation.speculation.shape_search import MAX_ROWS, MIN_BUDGET, MeasuredShape
from dfrot.generation.speculation.tree import TreeShape

# By the number of agreeing tokens, from 1 on: how often the next one is accepted (docs/results/drafts.md), in greedy
# decoding and in sampling.
GREEDY_RATES = (0.26, 0.68, 0.70, 0.80, 0.85, 0.90, 0.92, 0.97)
SAMPLED_RATES = (0.25, 0.47, 0.52, 0.60, 0.64, 0.68, 0.70, 0.80)
PRIOR = 4.0  # draft tokens that the averages weigh as much as
PACE_PRIOR = 16.0  # plain steps by which the pace of a text begins at 1
ALLOWANCE = 1.5  # plain steps that rejected draft tokens may cost in any text
ALLOWANCE_SHARE = 0.01  # and this share of its tokens
# Chains whose verify pass is measured, as long as the budget lasts; others lie in between. Kernels compute few rows at
# nearly the cost of one, so that a chain of 3 says most.
MEASURED_LENGTHS = (3, 1, 7, 15, 2, 5, 11)


class ChainLatencies(Protocol):
    """Durations in seconds. Implementations may measure them when they are read."""

    @property
    def step(self) -> float:
        """One step of plain decoding."""
        ...

    def verify_chain(self, length: int) -> float:
        """The target's pass over a chain of `length` draft tokens."""
        ...


class NgramPolicy:
    """The policy for one text. `options` may be shared between texts, so that passes are measured once."""

    def __init__(self, most: int, budget: float, options: Sequence[MeasuredShape] = (), greedy: bool = True) -> None:
        """most: draft tokens of a round, at most. budget: of measuring, in durations of a plain step. options: measured
        chains; empty to measure when the text begins. greedy: whether the text is decoded greedily."""
        self.most, self.budget = most, budget
        self.options: list[MeasuredShape] = list(options)
        self.seconds = 0.0  # that measuring took
        self.costs: list[float] = [1.0]  # of a round by its draft tokens, in plain steps
        # draft tokens by the number of tokens that agree before them: accepted ones, and those of which it is known
        self.accepted = [PRIOR * rate for rate in (GREEDY_RATES if greedy else SAMPLED_RATES)]
        self.verified = [PRIOR] * LONGEST_MATCH
        self.tokens, self.spent = 0.0, 0.0  # tokens written, and what they cost in plain steps
        self.rounds = self.drafted = self.hits = 0  # rounds with draft tokens, their draft tokens, accepted ones

    @property
    def needs_latencies(self) -> bool:
        """Whether `start` will measure."""
        return not self.options

    def start(
        self,
        costs: ChainLatencies | None = None,
        spent: Callable[[], float] | None = None,
        max_depth: int = MAX_ROWS - 1,
        max_rows: int = MAX_ROWS,
    ) -> None:
        """Measure where that is needed.

        costs: measures, where `needs_latencies`. spent: returns the seconds that measuring took so far. max_depth,
        max_rows: draft tokens and verify rows that the context has room for."""
        longest = min(self.most, max_depth, max_rows - 1)
        if self.needs_latencies and costs is not None and longest > 0:
            self.options = _measured(costs, longest, spent, self.budget)
            self.seconds = 0.0 if spent is None else spent()
        self.costs = _costs(self.options, self.most)

    @property
    def shape(self) -> TreeShape | None:
        """The longest chain of a round; None where no chain can be worth its pass."""
        lengths = [length for length, cost in enumerate(self.costs) if length and cost < length + 1]
        return TreeShape(lengths[-1]) if lengths else None

    def length(self, match: int, room: int) -> int:
        """How many draft tokens to verify behind a match of `match` tokens, at most `room`; 0 for a plain step."""
        pace = (self.tokens + PACE_PRIOR) / (self.spent + PACE_PRIOR)
        affordable = 1 + self.tokens - self.spent + ALLOWANCE + ALLOWANCE_SHARE * self.tokens
        best, best_worth, expected, reached = 0, 1 - pace, 1.0, 1.0
        for length in range(1, min(room, len(self.costs) - 1) + 1):
            agreeing = min(match + length - 1, LONGEST_MATCH) - 1
            reached *= self.accepted[agreeing] / self.verified[agreeing]
            expected += reached
            worth = expected - pace * self.costs[length]
            if worth > best_worth and self.costs[length] <= affordable:
                best, best_worth = length, worth
        return best

    def record_step(self) -> None:
        """Take note of a plain step."""
        self.tokens += 1
        self.spent += 1

    def record_round(self, match: int, drafted: int, accepted: int) -> None:
        """Take note of a round behind a match of `match` tokens: its draft tokens, and how many were accepted."""
        self.tokens += 1 + accepted
        self.spent += self.costs[drafted]
        self.rounds, self.drafted, self.hits = self.rounds + 1, self.drafted + drafted, self.hits + accepted
        for number in range(min(drafted, accepted + 1)):
            agreeing = min(match + number, LONGEST_MATCH) - 1
            self.verified[agreeing] += 1
            self.accepted[agreeing] += number < accepted

    def why(self) -> str:
        """One line: how the text is decoded."""
        measured_in = f" ({len(self.options)} passes measured in {self.seconds:.2f} s)" if self.seconds else ""
        if self.shape is None:
            return f"plain: verifying costs more than it can give here{measured_in}"
        return f"speculative, ngram, chains up to {self.shape.depth}{measured_in}"

    def to_dict(self) -> dict[str, Any]:
        """JSON: the measured passes, and what the text accepted."""
        return {
            "shape": None if self.shape is None else self.shape.name,
            "seconds": self.seconds,
            "measured": [
                {"shape": option.shape.name, "step_ms": 1e3 * option.step, "verify_ms": 1e3 * option.verify}
                for option in self.options
            ],
            "rounds": self.rounds,
            "draft_tokens": self.drafted,
            "accepted": self.hits,
        }


def _measured(
    costs: ChainLatencies, longest: int, spent: Callable[[], float] | None, budget: float
) -> list[MeasuredShape]:
    """Chains up to `longest`, as long as the budget (in plain steps) lasts."""
    options: list[MeasuredShape] = []
    for length in dict.fromkeys(min(length, longest) for length in MEASURED_LENGTHS):
        if options and spent is not None and spent() > max(MIN_BUDGET, budget * costs.step):
            break
        options.append(MeasuredShape(TreeShape(length), 0.0, costs.verify_chain(length), costs.step))
    return options


def _costs(options: Sequence[MeasuredShape], most: int) -> list[float]:
    """Costs of rounds with 0, 1, .. draft tokens in plain steps, straight lines between measured ones. A pass takes no
    longer than one with more rows: only a disturbed measurement says otherwise."""
    step = min((option.plain for option in options), default=1.0)
    known, least = list[tuple[int, float]](), float("inf")
    for option in sorted(options, key=lambda option: -option.shape.depth):
        least = min(least, option.verify / step)
        known.append((option.shape.depth, least))
    known = [(0, 1.0), *reversed(known)]
    costs = [1.0]
    for (low, low_cost), (high, high_cost) in pairwise(known):
        costs += [
            low_cost + (high_cost - low_cost) * (length - low) / (high - low) for length in range(low + 1, high + 1)
        ]
    return costs[: most + 1]
