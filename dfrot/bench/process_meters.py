"""Meters of this process: peak resident memory, and seconds without the cost of measuring."""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.02
STATUS = Path("/proc/self/status")
CLEAR_REFS, RESTART_PEAK = Path("/proc/self/clear_refs"), "5"  # proc(5): sets VmHWM to VmRSS


def resident_memory() -> dict[str, int]:
    """Resident bytes of this process: `peak` since it started, `now`. Empty where the system does not report them."""
    if not STATUS.is_file():
        return {}
    text = STATUS.read_text(encoding="ascii", errors="replace")
    keys = (("peak", "VmHWM"), ("now", "VmRSS"))
    matches = {name: re.search(rf"^{key}:\s+(\d+) kB", text, re.M) for name, key in keys}
    return {name: int(match[1]) << 10 for name, match in matches.items() if match}


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


class StageMeter:
    """Context manager: wall seconds of a block, and the highest resident memory of this process inside it.

    `peak_memory` is absolute (libraries and whatever else the process holds included), as the kernel counts it; None
    where the system does not let a process restart that count."""

    seconds: float
    peak_memory: int | None = None

    def __enter__(self) -> StageMeter:
        gc.collect()
        try:
            CLEAR_REFS.write_text(RESTART_PEAK, encoding="ascii")
            self._counted = True
        except OSError:
            self._counted = False
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *ignored: object) -> None:
        self.seconds = time.perf_counter() - self._begin
        if self._counted:
            self.peak_memory = resident_memory().get("peak")
