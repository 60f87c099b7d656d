"""DFRot's refinement of R1: weighted orthogonal Procrustes (arXiv 2412.00648, equations 1-8, algorithm 1).

Minimises L(R) = sum_common w |x R - Q(x R)|^2 + gamma^2 sum_massive |x R - Q(x R)|^2 over orthogonal R by turns:
quantization parameters per token for the present R, then the R that best maps the rows onto their quantized
images. Re-implemented from the paper, with three changes that make it fast:

1. Massive rows first (`massive_subspace.py`). They carry most of the objective and live in a few dimensions, where the
   alternation costs next to nothing and can be run many times. One search starts from the rotation that this yields,
   another one from the start itself: which basin is the deeper one depends on the rows.
2. The Procrustes step is solved to first order in a fixed eigenbasis (`procrustes_step.py`), without a decomposition
   per round.
3. Steps are over-relaxed and carry momentum (`search.py`; Nesterov's k / (k + 3), at most 0.75), dropped whenever the
   objective is above its best: plain alternation creeps, because codes change only at rounding thresholds.

The range of a dynamic quantizer does not minimise the error, so the objective may rise from one iterate to the next, in
the paper's form as in this one. Iterates are accepted only when they are better than all before; after a few that are
not, the search returns to the best one with half the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.processor import fast_bfloat16
from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.rotation.refinement.calibration_rows import CalibrationRows
from dfrot.rotation.refinement.massive_subspace import massive_first_start
from dfrot.rotation.refinement.objective import Objective, effective_gamma, evaluate
from dfrot.rotation.refinement.polar import orthogonalise, orthogonality_error
from dfrot.rotation.refinement.procrustes_step import ProcrustesStep
from dfrot.rotation.refinement.search import Search
from dfrot.rotation.refinement.settings import RefineSettings
from dfrot.rotation.refinement.tiles import Tiles

HALF_FROM = 1024  # width from which bfloat16 products pay
ORTHOGONAL = 1e-6  # |R^T R - I|_max that a start may have
Watch = Callable[[int, Callable[[], Tensor]], None]
"""`watch(k, matrix)`: called when iterate k of the curve is known to be the best so far, and for the massive-first
start before it is measured; matrix() builds it (float64 [d, d])."""


@dataclass(frozen=True)
class Refinement:
    """A refined rotation and how it was reached."""

    matrix: Tensor
    """float64 [d, d], orthogonal."""
    curve: list[float]
    """The objective at every iterate: the start, then the search from the massive-first start, then that from the
    start."""
    accepted: list[float]
    """The falling sequence of the values of `curve` that are below all before them."""
    best: int
    """Index of the lowest value in `curve`."""
    orthogonality_error: float
    """|R^T R - I|_max of `matrix`."""
    stats: dict[str, Any] = field(default_factory=dict)
    """JSON, with start and final errors measured in float32 products and float64 sums."""


def refine(
    rows: CalibrationRows,
    start: Tensor,
    settings: RefineSettings,
    *,
    progress: Progress = silent,
    watch: Watch | None = None,
    ranks: Ranks = SINGLE,
) -> Refinement:
    """Refine `start` float64 [d, d] (a randomised Hadamard matrix in the paper) on `rows`.

    ranks: processes that share the products, each calling this with the same rows and start, and getting the result.
    It does not depend on them, nor on the number of threads (it does on the precision of the products). Raises
    InputError when shapes disagree, rows are not finite, or `start` is not orthogonal.
    """
    _check(rows, start)
    gamma = effective_gamma(rows, settings.gamma)
    iterates = _Iterates(start, watch)
    half = _half_precision(settings, rows.width)
    with Tiles(ranks) as tiles:
        if rows.n_massive and gamma and settings.rounds:
            iterates.search_first(_massive_first(rows, start, settings, tiles))
        procrustes = ProcrustesStep(rows, gamma, settings.grid, tiles, half)
        rounds = _run_searches(iterates, procrustes, settings, progress)
        matrix = iterates.matrix()
        del procrustes  # its copies of the rows and the eigenbasis are not needed for what follows
        iterates.matrix = lambda: start
        matrix = ranks.broadcast(orthogonalise(matrix) if ranks.first else None) if iterates.best else start
        before, after = (evaluate(rows, rotation, settings.grid, gamma, tiles) for rotation in (start, matrix))
    accepted, best = iterates.accepted(), iterates.best
    if after.value > before.value:  # nothing was gained, whatever the rounding of the products says
        accepted, best, matrix, after = accepted[:1], 0, start, before
    stats = _stats(rows, gamma, before, after) | {
        "rounds": rounds,
        "anchored": 0 < best < iterates.second_search,
        "precision": "bfloat16" if half else "float32",
    }
    return Refinement(matrix, iterates.values, accepted, best, orthogonality_error(matrix), stats)


def _massive_first(rows: CalibrationRows, start: Tensor, settings: RefineSettings, tiles: Tiles) -> Tensor:
    """`massive_first_start`, which the first rank computes."""
    found = None
    if tiles.ranks.first:
        begin = massive_first_start(rows, start, settings.grid, tiles.alone())
        found = None if begin is start else begin
    found = tiles.ranks.broadcast(found)
    return start if found is None else found


def _run_searches(iterates: _Iterates, procrustes: ProcrustesStep, settings: RefineSettings, progress: Progress) -> int:
    """Run the search of every start, one after another; returns how many rounds they took together."""
    done, total = 0, settings.rounds * len(iterates.starts)
    for number, begin in enumerate(iterates.starts):
        search = Search(settings, procrustes.to_eigenbasis(begin))
        while True:
            progress("refine", number * settings.rounds + len(search.curve), total)
            value, product = procrustes.measure(search.iterate)
            first = not search.curve
            search.record(value)
            iterates.note(value, begin if first else None, partial(procrustes.from_eigenbasis, search.iterate))
            if search.finished(iterates.lowest):
                break
            search.advance(procrustes, product)
        done += len(search.curve) - 1
    progress("refine", total, total)
    return done


class _Iterates:
    """The objective at every iterate of all searches (the start first), and which iterate is the best."""

    def __init__(self, start: Tensor, watch: Watch | None) -> None:
        self.start, self.watch = start, watch
        self.starts = [start]
        self.values = [math.inf]  # the start's value comes with its own search
        self.best, self.lowest = 0, math.inf
        self.second_search = 1  # index of the first value of the search from the start
        self.matrix: Callable[[], Tensor] = lambda: start

    def search_first(self, begin: Tensor) -> None:
        """Search from `begin` before the search from the start: which of the two ends lower is not known beforehand."""
        if begin is self.start:
            return
        self.starts = [begin, self.start]
        if self.watch is not None:
            self.watch(1, lambda: begin)

    def note(self, value: float, begin: Tensor | None, matrix: Callable[[], Tensor]) -> None:
        """Record an iterate. begin: the rotation itself when it is the first of its search; matrix: builds it."""
        watched = begin is not None and begin is not self.start  # by `search_first`
        if begin is self.start:
            index, self.values[0], self.second_search = 0, value, len(self.values)
        else:
            index = len(self.values)
            self.values.append(value)
        if value < self.lowest:
            self.best, self.lowest = index, value
            self.matrix = matrix if begin is None else lambda: begin
            if self.watch is not None and not watched:
                self.watch(index, self.matrix)

    def accepted(self) -> list[float]:
        """The falling sequence of values that are below all before them."""
        falling: list[float] = []
        for value in self.values:
            if not falling or value < falling[-1]:
                falling.append(value)
        return falling


def _half_precision(settings: RefineSettings, width: int) -> bool:
    """Whether products are made in bfloat16 on this machine."""
    if settings.precision == "auto":
        return width >= HALF_FROM and fast_bfloat16()
    return settings.precision == "bfloat16"


def _check(rows: CalibrationRows, start: Tensor) -> None:
    width = rows.width
    if tuple(start.shape) != (width, width) or start.dtype != torch.float64:
        raise InputError(f"start rotation is {start.dtype} {list(start.shape)}, float64 [{width}, {width}] is needed")
    if not len(rows.rows):
        raise InputError("refinement: no calibration rows; give a longer sample")
    low, high = torch.aminmax(rows.rows)  # passes NaN on, and needs no copy of the rows
    if not bool(torch.isfinite(high - low)):
        raise InputError("refinement: calibration rows hold NaN or Inf; check the checkpoint's weights")
    if not orthogonality_error(start) < ORTHOGONAL:
        raise InputError("start rotation is not orthogonal; use a randomised Hadamard matrix")


def _stats(rows: CalibrationRows, gamma: float, before: Objective, after: Objective) -> dict[str, Any]:
    count = rows.n_massive
    return {
        "gamma": gamma,
        "effective_weight": gamma**2 * count / rows.total,
        "n_massive": count,
        "rows": len(rows.rows),
        "total": rows.total,
        "common_error_start": before.common,
        "common_error": after.common,
        "massive_error_start": before.massive,
        "massive_error": after.massive,
        "objective_start": before.value,
        "objective": after.value,
    }
