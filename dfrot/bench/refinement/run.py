"""`dfq bench rotate`: the refinement against the straightforward one, same rows, same process, same objective."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from dfrot.bench.machine import machine
from dfrot.bench.refinement.figure import figure_data as figure
from dfrot.bench.refinement.figure import plot
from dfrot.bench.refinement.straightforward import straightforward
from dfrot.bench.refinement.synthetic_rows import llama_like_rows
from dfrot.bench.settings import RefinementBenchSettings
from dfrot.errors import InputError
from dfrot.rotation.hadamard import randomized_hadamard
from dfrot.rotation.refinement.calibration_rows import CalibrationRows, unit_weight_rows
from dfrot.rotation.refinement.objective import effective_gamma, evaluate
from dfrot.rotation.refinement.refine import refine
from dfrot.rotation.refinement.settings import RefineSettings
from dfrot.rotation.refinement.tiles import Tiles
from dfrot.stage_folder import Progress, silent

__all__ = ["compare_refinement", "figure", "plot"]

EQUAL = 1.001  # objectives within 0.1 % count as the same
Point = tuple[int, float, float, float]  # round, seconds since the method began, objective, processor seconds


class _PeakMemory:
    """Highest resident memory of this process above the level at entry, bytes, sampled every 20 ms."""

    def __enter__(self) -> _PeakMemory:
        gc.collect()
        self._process = psutil.Process()
        self._base = self._top = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._top = max(self._top, self._process.memory_info().rss)

    def __exit__(self, *ignored: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self._top - self._base


class _Clock:
    """Seconds and processor seconds (all threads) of work, without what the measurement itself costs."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def now(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._processor

    def excluded(self, function: Callable[[], None]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        function()
        self._wall += time.perf_counter() - wall
        self._processor += time.process_time() - processor


def compare_refinement(
    width: int = RefinementBenchSettings.width,
    rows: int = RefinementBenchSettings.rows,
    rounds: int = RefinementBenchSettings.rounds,
    *,
    symmetric: bool = False,
    bits: int = RefinementBenchSettings.bits,
    seed: int = 0,
    settings: RefineSettings | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Both methods on generated RMSNorm outputs (1 row in 1000 massive), from the same randomised Hadamard.

    The clock of the straightforward method stops at each iterate; that of `refine` also holds its set-up and the
    measurement of each iterate. Objectives of both are those of float32 products with float64 sums on all rows,
    evaluated outside the clock. `speedup` = (seconds until the straightforward method is first within 0.1 % of its
    best objective) / (seconds until `refine` is); `processor_speedup` the same in processor seconds, for machines that
    do other work meanwhile. Memory: resident, above what the rows and the start take.
    """
    if rounds < 1 or rows < 64 or width < 16:
        raise InputError(f"bench: width {width}, rows {rows}, rounds {rounds}: at least 16, 64 and 1 are needed")
    massive = max(2, round(rows / 1000))
    values, mask = llama_like_rows(rows - massive, massive, width, seed)
    features = unit_weight_rows(values, massive=mask)
    settings = settings or RefineSettings(bits=bits, symmetric=symmetric, rounds=rounds, tol=0.0, seed=seed)
    gamma = effective_gamma(features, settings.gamma)
    start = randomized_hadamard(width, seed)
    plain, plain_memory = _straightforward(features, start, settings, gamma, rounds, progress)
    ours, ours_memory, stats = _refine(features, start, replace(settings, gamma=gamma), progress)
    final = _level(_settled(plain), plain, ours)
    levels = [_level(k, plain, ours) for k in sorted({1, 2, 5, 10, *range(20, rounds, 20)} | {_settled(plain)})]
    return {
        "width": width,
        "rows": rows,
        "massive": massive,
        "rounds": rounds,
        "bits": settings.bits,
        "symmetric": settings.symmetric,
        "gamma": gamma,
        "seed": seed,
        "straightforward": {"curve": plain, "peak_bytes": plain_memory, "seconds": plain[-1][1]},
        "refine": {"curve": ours, "peak_bytes": ours_memory, "stats": stats, "seconds": stats.pop("seconds")},
        "levels": [level for level in levels if level["round"] < len(plain)],
        "speedup": final["speedup"],
        "processor_speedup": final["processor_speedup"],
        "machine": machine(),
    }


def _settled(curve: list[Point]) -> int:
    """The first round whose objective is within 0.1 % of the best of the curve."""
    best = min(point[2] for point in curve)
    return next(point[0] for point in curve if point[2] <= best * EQUAL)


def _level(k: int, plain: list[Point], ours: list[Point]) -> dict[str, Any]:
    """Seconds of both until the objective of the straightforward method's round k is reached (within 0.1 %)."""
    if k >= len(plain):
        return {"round": k}
    _, seconds, value, processor = plain[k]
    hit = next((point for point in ours if point[2] <= value * EQUAL), None)
    return {
        "round": k,
        "objective": value,
        "straightforward_seconds": seconds,
        "refine_seconds": hit[1] if hit else None,
        "refine_round": hit[0] if hit else None,
        "speedup": seconds / hit[1] if hit and hit[1] > 0 else None,
        "processor_speedup": processor / hit[3] if hit and hit[3] > 0 else None,
    }


def _straightforward(
    features: CalibrationRows, start: Tensor, settings: RefineSettings, gamma: float, rounds: int, progress: Progress
) -> tuple[list[Point], int]:
    seconds: list[tuple[float, float]] = []
    values: list[float] = []
    with _PeakMemory() as memory:
        clock = _Clock()

        def watch(k: int, value: float) -> None:
            values.append(value)
            progress("straightforward", k, rounds)

        straightforward(features, start, settings.grid, gamma, rounds, lambda k: seconds.append(clock.now()), watch)
    return [(k, at[0], value, at[1]) for k, (at, value) in enumerate(zip(seconds, values))], memory.bytes


def _refine(
    features: CalibrationRows, start: Tensor, settings: RefineSettings, progress: Progress
) -> tuple[list[Point], int, dict[str, Any]]:
    found: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as folder, _PeakMemory() as memory:
        clock = _Clock()

        def watch(k: int, matrix: Callable[[], Tensor]) -> None:
            found.append((k, *clock.now()))
            clock.excluded(lambda: matrix().float().numpy().tofile(Path(folder) / str(k)))

        result = refine(features, start, settings, progress=progress, watch=watch)
        seconds = clock.now()[0]
        peak = memory.bytes
        curve: list[Point] = []
        with Tiles() as tiles:
            if found[0][0]:
                curve.append(
                    (0, 0.0, evaluate(features, start, settings.grid, float(settings.gamma), tiles).value, 0.0)
                )
            for done, (k, wall, processor) in enumerate(found):
                progress("evaluate", done, len(found))
                matrix = torch.from_file(str(Path(folder) / str(k)), size=start.numel()).view_as(start)
                value = evaluate(features, matrix, settings.grid, float(settings.gamma), tiles).value
                curve.append((k, wall, value, processor))
    return curve, peak, {**result.stats, "seconds": seconds, "orthogonality_error": result.orthogonality_error}
