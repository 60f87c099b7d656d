"""How often guesses stand, and the acceptance length that a shape may expect of that.

rates[t][r] is the chance that the target's token at depth t + 1 is the draft's guess of rank r (0 the likeliest), where
the tokens before it stand. A node of a tree, reached by guesses of the ranks r1 .. rd, then stands with the chance
rates[0][r1] x .. x rates[d-1][rd], and a round accepts as many guesses as the sum over nodes says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfrot.generation.tree import TreeShape

RANKS = 4  # that training records


@dataclass(frozen=True)
class AcceptanceRates:
    """greedy: where the target says its likeliest token. sampled: where it draws at temperature 1, from its average
    probability of the guesses; empty where unknown. Old records know rank 0 alone (`ranked` is False): enough for
    chains."""

    greedy: tuple[tuple[float, ...], ...]
    sampled: tuple[tuple[float, ...], ...] = ()

    @property
    def ranked(self) -> bool:
        return all(len(step) > 1 for step in self.greedy)

    def of(self, greedy: bool) -> tuple[tuple[float, ...], ...]:
        """By step and rank. Without a record of sampling that of greedy decoding stands in, which promises more."""
        return self.greedy if greedy or not self.sampled else self.sampled

    @classmethod
    def of_history(cls, record: Any) -> AcceptanceRates | None:
        """From the record (`stage.json`) of a training: of the rounded draft where it was rounded, else of the best
        evaluation. None where it holds none that make sense."""
        try:
            best = max(record["history"], key=lambda one: float(one["simulated_tau"]))
            if "held_out_ranks" in (rounded := record.get("quantized") or {}):
                best = rounded
            greedy = _table(best.get("held_out_ranks") or [[share] for share in best["held_out_agreement"]])
            return cls(greedy, _table(best.get("held_out_mass", ()))) if greedy else None
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


def _table(value: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    found = tuple(tuple(float(share) for share in step) for step in value)
    if any(not step or not all(0 <= share <= 1 for share in step) for step in found):
        raise ValueError("not shares")
    return found


def nodes(shape: TreeShape, rates: Sequence[Sequence[float]]) -> list[float]:
    """Chances of the guesses of a shape, likeliest first. Steps beyond the known ones are like the last, ranks beyond
    never stand.

    Of a dynamic tree these are an estimate from below: it is the best *fixed* tree that grows as the dynamic one does
    (`topk` nodes of a level grow, the best `total` of all stay), chosen by the average rates, as Sequoia (2402.12374)
    and Medusa (2401.10774) choose theirs. EAGLE-2's tree has as many nodes, chosen in every context by the draft's own
    probabilities: if these order guesses at least as well as the averages do, it gives more. Guesses of a path are
    taken as independent, which is low too: where one stands, the next is likelier to (an easy text)."""
    if not rates:
        return []
    if shape.topk == 1:
        return [math.prod(_at(rates, t)[0] for t in range(depth + 1)) for depth in range(shape.depth)]
    found: list[float] = []
    level = [1.0]
    for t in range(shape.depth):
        fresh = sorted((node * rate for node in level for rate in _at(rates, t)[: shape.topk]), reverse=True)
        found += fresh
        level = fresh[: shape.topk]
    return sorted(found, reverse=True)[: shape.total - 1]


def _at(rates: Sequence[Sequence[float]], t: int) -> Sequence[float]:
    return rates[min(t, len(rates) - 1)]


def expected_tau(shape: TreeShape, rates: Sequence[Sequence[float]]) -> float:
    """Tokens per verify pass, the bonus counted."""
    return 1.0 + sum(nodes(shape, rates))


def scaled(rates: Sequence[Sequence[float]], factor: float) -> tuple[tuple[float, ...], ...]:
    """All chances times `factor`, those of a step together at most 1."""
    found = []
    for step in rates:
        share = min(factor, 1 / sum(step)) if sum(step) else factor
        found.append(tuple(rate * share for rate in step))
    return tuple(found)
