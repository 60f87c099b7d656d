"""Whether drafting pays here, and how far to guess: from times measured on this machine and how often guesses stand.

A round of n guesses costs one draft pass for each and one verify pass of n + 1 rows, and gives 1 + sum of the
chances that 1, 2, ... n guesses stand. Plain decoding gives one token per pass of one row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dfrot.draft.base import Draft
from dfrot.draft.head import guess_head
from dfrot.draft.target import Target
from dfrot.draft.tree import Shape, expand

REPEATS = 5
MARGIN = 1.05  # a gain below this is within the noise of the measurement


@dataclass(frozen=True)
class Costs:
    """Seconds: step of one token; verify[n] of a chain of n rows; draft[n] of n guesses, extending included."""

    step: float
    verify: dict[int, float]
    draft: dict[int, float]

    def speedup(self, guesses: int, agreement: Sequence[float]) -> float:
        """Expected tokens per second over plain decoding's. agreement: chance that guess i stands if the ones before
        it do; the last value serves the deeper ones."""
        tau, chance = 1.0, 1.0
        for place in range(guesses):
            chance *= agreement[min(place, len(agreement) - 1)] if agreement else 0.0
            tau += chance
        return tau * self.step / (self.verify[guesses + 1] + self.draft[guesses])


@torch.inference_mode()
def measure(target: Target, draft: Draft, prompt: Sequence[int], most: int = 6) -> Costs:
    """Times of chains of 1 .. `most` guesses behind `prompt`, the fastest of a few repeats each."""
    cache = target.start()
    features, _ = target.prefill(torch.tensor(prompt), cache)
    past = len(prompt)
    state = draft.begin(past + most + 2)
    state.extend(target.embed(torch.tensor(prompt)), features[:-1])
    mark = state.mark()

    of_target = guess_head(target, draft)

    def head(outputs: torch.Tensor) -> torch.Tensor:
        return draft.logits(outputs, of_target)

    def verify(rows: int) -> None:
        target.verify([prompt[-1]] * rows, list(range(-1, rows - 1)), cache)
        target.keep(cache, past, rows, [])

    def guess(count: int) -> None:
        tokens = target.embed(torch.tensor(prompt[-1:]))
        root = state.extend(tokens, features[-1:])
        expand(state, prompt[-1], root, head, target.embed, Shape(count))
        state.back(mark)

    def step() -> None:
        target.step(prompt[-1], cache)
        target.keep(cache, past, 1, [])

    counts = range(1, most + 1)
    return Costs(
        _fastest(step),
        {count + 1: _fastest(lambda count=count: verify(count + 1)) for count in counts},  # type: ignore[misc]
        {count: _fastest(lambda count=count: guess(count)) for count in counts},  # type: ignore[misc]
    )


def _fastest(work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def choose(costs: Costs, agreement: Sequence[float]) -> tuple[int, float]:
    """The best number of guesses (0: drafting does not pay) and the speedup that is expected of it."""
    best = max(costs.draft, key=lambda count: costs.speedup(count, agreement))
    gain = costs.speedup(best, agreement)
    return (best, gain) if gain >= MARGIN else (0, gain)
