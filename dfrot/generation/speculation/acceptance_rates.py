"""Acceptance rates of a draft, and the acceptance length to expect of a tree shape.

rates[t][r] is the probability that the target's token at depth t + 1 is the draft token of rank r (0 the likeliest),
given that the tokens before it were accepted. A node of a tree that is reached over the ranks r1 .. rd is then accepted
with probability rates[0][r1] x .. x rates[d-1][rd], and the expected number of accepted tokens of a round is the sum
over its nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfrot.generation.speculation.tree import TreeShape

RANKS = 4  # ranks per step that training records

Rates = Sequence[Sequence[float]]
"""Probabilities by step and rank."""


@dataclass(frozen=True)
class AcceptanceRates:
    """Rates measured on held-out samples. Old records know rank 0 only, which suffices for chains."""

    greedy: tuple[tuple[float, ...], ...]
    """By step and rank, where the target takes its likeliest token."""
    sampled: tuple[tuple[float, ...], ...] = ()
    """By step and rank, where the target samples at temperature 1: its mean probability of the draft token. Empty where
    unknown."""

    @property
    def ranked(self) -> bool:
        """Whether rates of more than one rank are known for every step."""
        return all(len(step) > 1 for step in self.greedy)

    def of(self, greedy: bool) -> tuple[tuple[float, ...], ...]:
        """Rates by step and rank. Without a record for sampling those of greedy decoding are used; they are higher."""
        return self.greedy if greedy or not self.sampled else self.sampled

    @classmethod
    def of_history(cls, record: Any) -> AcceptanceRates | None:
        """From the record (`stage.json`) of a training: those of the quantized draft where it was quantized, else those
        of the best evaluation. None where the record holds no valid rates."""
        try:
            best = max(record["history"], key=lambda evaluation: float(evaluation["simulated_tau"]))
            if "held_out_ranks" in (quantized := record.get("quantized") or {}):
                best = quantized
            greedy = _validated(best.get("held_out_ranks") or [[share] for share in best["held_out_agreement"]])
            return cls(greedy, _validated(best.get("held_out_mass", ()))) if greedy else None
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


def _validated(values: Rates) -> tuple[tuple[float, ...], ...]:
    rates = tuple(tuple(float(rate) for rate in step) for step in values)
    if any(not step or not all(0 <= rate <= 1 for rate in step) for step in rates):
        raise ValueError("not probabilities")
    return rates


def node_probabilities(shape: TreeShape, rates: Rates) -> list[float]:
    """Probability that each node of a shape is accepted, the largest first, the root excluded.

    Steps beyond the recorded ones are taken to be like the last; ranks beyond the recorded ones are never accepted.

    For dynamic trees this is a lower estimate: it is the best *fixed* tree that grows as the dynamic one does (`topk`
    nodes of a level get children, the best `total` of all are kept), chosen by the average rates, as Sequoia (arXiv
    2402.12374) and Medusa (arXiv 2401.10774) choose theirs. EAGLE-2's tree has as many nodes, chosen in every context
    by the draft's own probabilities; it accepts more if these order nodes at least as well as the averages do. The
    estimate also takes nodes of a path to be independent, while in easy text an accepted token makes the next one
    likelier to be accepted."""
    if not rates:
        return []
    if shape.topk == 1:
        return [math.prod(_step(rates, t)[0] for t in range(depth + 1)) for depth in range(shape.depth)]
    probabilities: list[float] = []
    level = [1.0]
    for t in range(shape.depth):
        children = sorted((node * rate for node in level for rate in _step(rates, t)[: shape.topk]), reverse=True)
        probabilities += children
        level = children[: shape.topk]
    return sorted(probabilities, reverse=True)[: shape.total - 1]


def _step(rates: Rates, t: int) -> Sequence[float]:
    return rates[min(t, len(rates) - 1)]


def expected_tau(shape: TreeShape, rates: Rates) -> float:
    """The acceptance length to expect: tokens per verify pass, the bonus token included."""
    return 1.0 + sum(node_probabilities(shape, rates))


def scaled(rates: Rates, factor: float) -> tuple[tuple[float, ...], ...]:
    """All rates times `factor`, limited so that those of a step add up to at most 1."""
    steps = []
    for step in rates:
        limited = min(factor, 1 / sum(step)) if sum(step) else factor
        steps.append(tuple(rate * limited for rate in step))
    return tuple(steps)
