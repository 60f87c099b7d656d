"""Interleaved timing."""

from __future__ import annotations

import pytest

from dfrot.bench.clock import Timing, race


def test_contenders_take_turns() -> None:
    order: list[str] = []
    times = race({"a": [lambda: order.append("a")], "b": [lambda: order.append("b")]}, 3)
    runs = "".join(order).replace("aa", "a")
    assert times.keys() == {"a", "b"}
    assert all(time.samples == 3 for time in times.values())
    while "aa" in runs or "bb" in runs:
        runs = runs.replace("aa", "a").replace("bb", "b")
    assert runs == "ab" * (1 + 3)  # warming up, then three rounds


def test_timing_statistics() -> None:
    timing = Timing.of([1.0, 3.0, 2.0])
    assert (timing.median, timing.best, timing.samples) == (2.0, 1.0, 3)
    assert timing.spread == pytest.approx(0.5)
    assert Timing.of([2.0]).spread == 0.0
