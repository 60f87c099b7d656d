"""Interleaved timing: contenders take turns, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Call = Callable[[], Any]
MIN_SAMPLE_SECONDS = 1.5e-3  # far above the clock's resolution and a thread's wake-up
MAX_RING_RUNS = 1000  # runs of a ring in one sample, however short its calls are


@dataclass(frozen=True)
class Timing:
    """Seconds per call."""

    median: float
    """Median of the samples."""
    best: float
    """Smallest sample."""
    spread: float
    """Half the interquartile range over the median."""
    samples: int
    """Number of samples."""

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise samples, one at least."""
        median = statistics.median(seconds)
        low, high = (statistics.quantiles(seconds, n=4)[i] for i in (0, 2)) if len(seconds) > 1 else (median, median)
        return cls(median, min(seconds), (high - low) / 2 / median if median else 0.0, len(seconds))

    def to_dict(self) -> dict[str, float]:
        """JSON."""
        return {"median": self.median, "best": self.best, "spread": self.spread, "samples": self.samples}


def race(contenders: Mapping[str, Sequence[Call]], repeats: int) -> dict[str, Timing]:
    """Time every contender `repeats` times, in turns; seconds per call by name.

    A contender is a ring of calls that differ in their operands. A sample runs the whole ring, several times where once
    is too short to time."""
    runs = {name: _runs_per_sample(ring) for name, ring in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, ring in contenders.items():
            samples[name].append(_sample(ring, runs[name]))
    return {name: Timing.of(seconds) for name, seconds in samples.items()}


def _runs_per_sample(ring: Sequence[Call]) -> int:
    """Warm up; then how often the ring must run to last MIN_SAMPLE_SECONDS."""
    for call in ring:
        call()
    once = _sample(ring, 1) * len(ring)
    return max(1, min(MAX_RING_RUNS, round(MIN_SAMPLE_SECONDS / max(once, 1e-9) + 0.5)))


def _sample(ring: Sequence[Call], runs: int) -> float:
    """Seconds per call over `runs` runs of the ring."""
    begin = time.perf_counter()
    for _ in range(runs):
        for call in ring:
            call()
    return (time.perf_counter() - begin) / (runs * len(ring))
