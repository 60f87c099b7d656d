"""Meters of this process: peak resident memory, and seconds without the cost of measuring."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import psutil

SAMPLE_SECONDS = 0.02


class PeakMemory:
    """Context manager: highest resident memory of this process above the level at entry, sampled every 20 ms."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._process = psutil.Process()
        self._base = self._peak = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *ignored: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        """The peak above the level at entry, bytes."""
        return self._peak - self._base


class ProcessClock:
    """Seconds and processor seconds (of all threads) since it was made, without what `excluded` took."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def now(self) -> tuple[float, float]:
        """(seconds, processor seconds)."""
        return time.perf_counter() - self._wall, time.process_time() - self._processor

    def excluded(self, function: Callable[[], None]) -> None:
        """Call `function` while the clock stands still."""
        wall, processor = time.perf_counter(), time.process_time()
        function()
        self._wall += time.perf_counter() - wall
        self._processor += time.process_time() - processor
