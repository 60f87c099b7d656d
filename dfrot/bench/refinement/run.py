"""`dfq bench rotate`: the refinement against the straightforward method, on the same rows and the same objective."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfrot.bench.machine import machine
from dfrot.bench.process_meters import PeakMemory, ProcessClock
from dfrot.bench.refinement.straightforward import straightforward
from dfrot.bench.refinement.synthetic_rows import llama_like_rows
from dfrot.bench.settings import RefinementBenchSettings
from dfrot.errors import InputError
from dfrot.progress import Progress, silent
from dfrot.rotation.hadamard import randomized_hadamard
from dfrot.rotation.refinement.calibration_rows import CalibrationRows, unit_weight_rows
from dfrot.rotation.refinement.objective import effective_gamma, evaluate
from dfrot.rotation.refinement.refine import refine
from dfrot.rotation.refinement.settings import RefineSettings
from dfrot.rotation.refinement.tiles import Tiles

ROWS = 16 * 2048
EQUAL = 1.001  # objectives within 0.1 % count as the same
MIN_ROUNDS, MIN_ROWS, MIN_WIDTH = 1, 64, 16
MASSIVE_SHARE = 1000  # one row in so many is massive
EARLY_ROUNDS, LEVEL_STEP = (1, 2, 5, 10), 20  # rounds whose objectives are compared: these, then every 20th


class CurvePoint(NamedTuple):
    """The objective after a round. In JSON it is a list of the four."""

    round: int
    seconds: float
    """Since the method began."""
    objective: float
    processor_seconds: float
    """Of all threads, since the method began."""


Curve = list[CurvePoint]


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
    """Run both methods on generated RMSNorm outputs (one row in 1000 massive) from the same randomised Hadamard; JSON.

    The clock of the straightforward method stops at each iterate; that of `refine` includes its set-up and its own
    measurement of each iterate. The objectives of both are evaluated outside the clock, from float32 products with
    float64 sums on all rows. `speedup` is (seconds until the straightforward method is first within 0.1 % of its best
    objective) / (seconds until `refine` is); `processor_speedup` the same in processor seconds, for machines under
    other load. `peak_bytes` is resident memory above what the rows and the start take.

    settings: of `refine`; None: from `bits`, `symmetric`, `rounds` and `seed`. Raises InputError for sizes too small.
    """
    if rounds < MIN_ROUNDS or rows < MIN_ROWS or width < MIN_WIDTH:
        raise InputError(
            f"bench: `width={width}`, `rows={rows}`, `rounds={rounds}`: at least 16, 64 and 1 are needed",
            field=("width", "rows", "rounds"),
        )
    massive = max(2, round(rows / MASSIVE_SHARE))
    values, mask = llama_like_rows(rows - massive, massive, width, seed)
    features = unit_weight_rows(values, massive=mask)
    settings = settings or RefineSettings(bits=bits, symmetric=symmetric, rounds=rounds, tol=0.0, seed=seed)
    gamma = effective_gamma(features, settings.gamma)
    start = randomized_hadamard(width, seed)
    plain, plain_memory = _run_straightforward(features, start, settings, gamma, rounds, progress)
    ours, ours_memory, stats = _run_refine(features, start, replace(settings, gamma=gamma), progress)
    settled = _settled_round(plain)
    final = _level(settled, plain, ours)
    compared = sorted({*EARLY_ROUNDS, *range(LEVEL_STEP, rounds, LEVEL_STEP), settled})
    levels = [_level(k, plain, ours) for k in compared]
    return {
        "width": width,
        "rows": rows,
        "massive": massive,
        "rounds": rounds,
        "bits": settings.bits,
        "symmetric": settings.symmetric,
        "gamma": gamma,
        "seed": seed,
        "straightforward": {"curve": plain, "peak_bytes": plain_memory, "seconds": plain[-1].seconds},
        "refine": {"curve": ours, "peak_bytes": ours_memory, "stats": stats, "seconds": stats.pop("seconds")},
        "levels": [level for level in levels if level["round"] < len(plain)],
        "speedup": final["speedup"],
        "processor_speedup": final["processor_speedup"],
        "machine": machine(),
    }


def _settled_round(curve: Curve) -> int:
    """The first round whose objective is within 0.1 % of the best of the curve."""
    best = min(point.objective for point in curve)
    return next(point.round for point in curve if point.objective <= best * EQUAL)


def _level(k: int, plain: Curve, ours: Curve) -> dict[str, Any]:
    """Seconds of both until the objective of the straightforward method's round k is reached (within 0.1 %)."""
    if k >= len(plain):
        return {"round": k}
    target = plain[k]
    reached = next((point for point in ours if point.objective <= target.objective * EQUAL), None)
    return {
        "round": k,
        "objective": target.objective,
        "straightforward_seconds": target.seconds,
        "refine_seconds": reached.seconds if reached else None,
        "refine_round": reached.round if reached else None,
        "speedup": target.seconds / reached.seconds if reached and reached.seconds > 0 else None,
        "processor_speedup": (
            target.processor_seconds / reached.processor_seconds if reached and reached.processor_seconds > 0 else None
        ),
    }


def _run_straightforward(
    features: CalibrationRows, start: Tensor, settings: RefineSettings, gamma: float, rounds: int, progress: Progress
) -> tuple[Curve, int]:
    """The curve of the straightforward method and its peak memory, bytes."""
    times: list[tuple[float, float]] = []
    objectives: list[float] = []
    with PeakMemory() as memory:
        clock = ProcessClock()

        def watch(k: int, objective: float) -> None:
            objectives.append(objective)
            progress("straightforward", k, rounds)

        straightforward(features, start, settings.grid, gamma, rounds, lambda k: times.append(clock.now()), watch)
    pairs = enumerate(zip(times, objectives))
    return [CurvePoint(k, wall, objective, processor) for k, ((wall, processor), objective) in pairs], memory.bytes


def _run_refine(
    features: CalibrationRows, start: Tensor, settings: RefineSettings, progress: Progress
) -> tuple[Curve, int, dict[str, Any]]:
    """The curve of `refine`, its peak memory in bytes, and its statistics. Iterates are kept in files and evaluated
    afterwards, outside the clock."""
    times: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        clock = ProcessClock()

        def watch(k: int, matrix: Callable[[], Tensor]) -> None:
            times.append((k, *clock.now()))
            clock.excluded(lambda: matrix().float().numpy().tofile(Path(folder) / str(k)))

        result = refine(features, start, settings, progress=progress, watch=watch)
        seconds = clock.now()[0]
        peak = memory.bytes
        curve: Curve = []
        with Tiles() as tiles:

            def objective(matrix: Tensor) -> float:
                return evaluate(features, matrix, settings.grid, float(settings.gamma), tiles).value

            if times[0][0]:
                curve.append(CurvePoint(0, 0.0, objective(start), 0.0))
            for done, (k, wall, processor) in enumerate(times):
                progress("evaluate", done, len(times))
                matrix = torch.from_file(str(Path(folder) / str(k)), size=start.numel()).view_as(start)
                curve.append(CurvePoint(k, wall, objective(matrix), processor))
    return curve, peak, {**result.stats, "seconds": seconds, "orthogonality_error": result.orthogonality_error}
