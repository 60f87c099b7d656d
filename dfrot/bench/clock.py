"""Interleaved timing: contenders take turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Call = Callable[[], Any]
LEAST = 1.5e-3  # seconds of one sample: far above the clock's resolution and a thread's wake-up


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, best, and spread = half the interquartile range over the median."""

    median: float
    best: float
    spread: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        middle = statistics.median(seconds)
        low, high = (statistics.quantiles(seconds, n=4)[i] for i in (0, 2)) if len(seconds) > 1 else (middle, middle)
        return cls(middle, min(seconds), (high - low) / 2 / middle if middle else 0.0, len(seconds))

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "best": self.best, "spread": self.spread, "samples": self.samples}


def race(contenders: Mapping[str, Sequence[Call]], repeats: int) -> dict[str, Timing]:
    """Time every contender `repeats` times, in turns. A contender is a ring of calls that differ in their operands;
    one sample runs whole rings (several where one is too short to time) and counts seconds per call."""
    rounds = {name: _rounds(ring) for name, ring in contenders.items()}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, ring in contenders.items():
            found[name].append(_sample(ring, rounds[name]))
    return {name: Timing.of(seconds) for name, seconds in found.items()}


def _rounds(ring: Sequence[Call]) -> int:
    """Warm up, and how many times the ring must run to last LEAST seconds."""
    for call in ring:
        call()
    once = _sample(ring, 1) * len(ring)
    return max(1, min(1000, round(LEAST / max(once, 1e-9) + 0.5)))


def _sample(ring: Sequence[Call], rounds: int) -> float:
    begin = time.perf_counter()
    for _ in range(rounds):
        for call in ring:
            call()
    return (time.perf_counter() - begin) / (rounds * len(ring))
