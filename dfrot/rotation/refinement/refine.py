"""DFRot's refinement of R1: weighted orthogonal Procrustes (arXiv 2412.00648, equations 1-8, algorithm 1).

Minimises L(R) = sum_common w |x R - Q(x R)|^2 + gamma^2 sum_massive |x R - Q(x R)|^2 over orthogonal R by turns:
quantization parameters per token for the present R, then the R that best maps the rows onto their quantized
images. Re-implemented from the paper, with three changes that make it fast:

1. Massive rows first (`massive_subspace.py`). They carry most of the objective and live in a few dimensions, where the
   alternation costs next to nothing and can be run many times. The search starts from what this finds, and once more
   from the start itself: which basin is the deeper one depends on the rows.
2. The Procrustes step is solved to first order in a fixed eigenbasis (`descent.py`), not by a decomposition per round.
3. Steps are over-relaxed and carry momentum (Nesterov's k / (k + 3), at most 0.75), dropped whenever the objective is
   above its best: plain alternation creeps, because codes change only at rounding thresholds.

The range of a dynamic quantizer does not minimise the error, so the objective may rise from one iterate to the next in
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
from dfrot.rotation.refinement.descent import ProcrustesStep, cap_angle
from dfrot.rotation.refinement.features import CalibrationRows
from dfrot.rotation.refinement.massive_subspace import massive_first_start
from dfrot.rotation.refinement.objective import Objective, effective_gamma, evaluate
from dfrot.rotation.refinement.polar import orthogonalise, orthogonality_error
from dfrot.rotation.refinement.settings import RefineSettings
from dfrot.rotation.refinement.tiles import Tiles
from dfrot.stage_folder import Progress, silent

MOMENTUM = 0.75
STEP = 1.5  # over-relaxation
PATIENCE = 4  # iterates above the best before the search returns to it
WINDOW = 12  # rounds over which the relative improvement is judged
MIN_STEP = 1 / 16
HALF_FROM = 1024  # width from which bfloat16 products pay
Watch = Callable[[int, Callable[[], Tensor]], None]
"""`watch(k, matrix)`: called when iterate k of the curve is known to be the best so far, and for the anchored start
before it is measured; matrix() builds it (float64 [d, d])."""


@dataclass(frozen=True)
class Refinement:
    """matrix float64 [d, d]; curve: the objective at every iterate (the start, then the search from the anchored
    rotation, then the one from the start); accepted: the falling sequence of those better than all before; best: index
    of the last of these in `curve`; orthogonality_error |R^T R - I|_max;
    stats: JSON, with start and final errors measured in float32 products and float64 sums."""

    matrix: Tensor
    curve: list[float]
    accepted: list[float]
    best: int
    orthogonality_error: float
    stats: dict[str, Any] = field(default_factory=dict)


class _Search:
    """Momentum with restarts around the best iterate; matrices in the eigenbasis of `ProcrustesStep`."""

    def __init__(self, settings: RefineSettings, turned: Tensor) -> None:
        self.settings = settings
        self.turned = self.best = turned
        self.skew: Tensor | None = None
        self.step, self.age, self.above = STEP, 0, 0
        self.curve: list[float] = []
        self.accepted: list[tuple[int, float]] = []

    def record(self, value: float) -> None:
        """Note the objective at the present iterate; it becomes the best one, or ends the momentum."""
        self.curve.append(value)
        if self.accepted and not value < self.accepted[-1][1]:
            self.skew = None
            self.above += 1
        else:
            self.accepted.append((len(self.curve) - 1, value))
            self.best, self.above = self.turned, 0

    def finished(self, least: float) -> bool:
        """Whether rounds, improvement or step size are used up, or another search's `least` is out of reach: falling
        as in its last window, this one would not meet it in two more."""
        rounds = len(self.curve) - 1
        if rounds >= self.settings.rounds or self.accepted[-1][1] == 0.0 or self.step < MIN_STEP:
            return True
        if rounds < WINDOW:
            return False
        before = min(value for at, value in self.accepted if at <= rounds - WINDOW)
        now = self.accepted[-1][1]
        return now > before * (1.0 - WINDOW * self.settings.tol) or now - 2 * (before - now) > least

    def advance(self, rounds: ProcrustesStep, product: Tensor) -> None:
        """The next iterate from C at the present one."""
        if self.above >= PATIENCE:
            self.turned, self.skew, self.above, self.age = self.best, None, 0, 0
            self.step /= 2
            _, product = rounds.measure(self.turned)
        skew = rounds.direction(self.turned, product).mul_(self.step)
        if self.skew is not None:
            skew.add_(self.skew, alpha=min(MOMENTUM, self.age / (self.age + 3)))
        self.skew = cap_angle(skew)
        self.age += 1
        self.turned = rounds.turn(self.turned, self.skew)


def refine(
    features: CalibrationRows,
    start: Tensor,
    settings: RefineSettings,
    *,
    progress: Progress = silent,
    watch: Watch | None = None,
) -> Refinement:
    """Refine `start` float64 [d, d] (a randomised Hadamard in the paper) on `features`.

    The result does not depend on the number of threads (it does on the precision of the products). Raises
    InputError when shapes disagree, rows are not finite, or `start` is not orthogonal.
    """
    _check(features, start)
    gamma = effective_gamma(features, settings.gamma)
    iterates = _Iterates(start, watch)
    with Tiles() as tiles:
        if features.n_massive and gamma and settings.rounds:
            iterates.anchored(massive_first_start(features, start, settings.grid, tiles))
        half = _half_precision(settings, features.width)
        rounds = ProcrustesStep(features, gamma, settings.grid, tiles, half)
        done, total = 0, settings.rounds * len(iterates.begins)
        for number, begin in enumerate(iterates.begins):
            search = _Search(settings, rounds.enter(begin))
            while True:
                progress("refine", number * settings.rounds + len(search.curve), total)
                value, product = rounds.measure(search.turned)
                fresh = not search.curve
                search.record(value)
                iterates.note(value, begin if fresh else None, partial(rounds.leave, search.turned))
                if search.finished(iterates.least):
                    break
                search.advance(rounds, product)
            done += len(search.curve) - 1
        progress("refine", total, total)
        matrix = iterates.matrix()
        del rounds, search  # their copies of the rows and the eigenbasis are not needed for what follows
        iterates.matrix = lambda: start
        matrix = orthogonalise(matrix) if iterates.best else start
        before, after = (evaluate(features, one, settings.grid, gamma, tiles) for one in (start, matrix))
    accepted, best = iterates.accepted(), iterates.best
    if after.value > before.value:  # nothing was gained, whatever the rounding of the products says
        accepted, best, matrix, after = accepted[:1], 0, start, before
    stats = _stats(features, gamma, before, after) | {
        "rounds": done,
        "anchored": 0 < best < iterates.second,
        "precision": "bfloat16" if half else "float32",
    }
    return Refinement(matrix, iterates.values, accepted, best, orthogonality_error(matrix), stats)


class _Iterates:
    """The objective at every iterate: the start, then the searches one behind the other; and the best one of all."""

    def __init__(self, start: Tensor, watch: Watch | None) -> None:
        self.start, self.watch = start, watch
        self.begins = [start]
        self.values = [math.inf]  # the start's comes with its own search
        self.best, self.least, self.second = 0, math.inf, 1
        self.matrix: Callable[[], Tensor] = lambda: start

    def anchored(self, begin: Tensor) -> None:
        """Search from `begin` first, and from the start afterwards: which of the two ends lower, no one knows."""
        if begin is self.start:
            return
        self.begins = [begin, self.start]
        if self.watch is not None:
            self.watch(1, lambda: begin)

    def note(self, value: float, begin: Tensor | None, matrix: Callable[[], Tensor]) -> None:
        """An iterate; `begin`: the rotation itself when it is the first of its search."""
        known = begin is not None and begin is not self.start  # watched already
        if begin is self.start:
            at, self.values[0], self.second = 0, value, len(self.values)
        else:
            at = len(self.values)
            self.values.append(value)
        if value < self.least:
            self.best, self.least = at, value
            self.matrix = matrix if begin is None else lambda: begin
            if self.watch is not None and not known:
                self.watch(at, self.matrix)

    def accepted(self) -> list[float]:
        """The falling sequence of those that are better than all before."""
        found: list[float] = []
        for value in self.values:
            if not found or value < found[-1]:
                found.append(value)
        return found


def _half_precision(settings: RefineSettings, width: int) -> bool:
    """Whether products are made in bfloat16 on this machine."""
    if settings.precision == "auto":
        return width >= HALF_FROM and fast_bfloat16()
    return settings.precision == "bfloat16"


def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX512-BF16 or AMX); emulation would be slower."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


def _check(features: CalibrationRows, start: Tensor) -> None:
    width = features.width
    if tuple(start.shape) != (width, width) or start.dtype != torch.float64:
        raise InputError(f"start rotation is {start.dtype} {list(start.shape)}, float64 [{width}, {width}] is needed")
    if not len(features.rows):
        raise InputError("refinement: no calibration rows; give a longer sample")
    low, high = torch.aminmax(features.rows)  # passes NaN on, and needs no copy of the rows
    if not bool(torch.isfinite(high - low)):
        raise InputError("refinement: calibration rows hold NaN or Inf; check the checkpoint's weights")
    if not orthogonality_error(start) < 1e-6:
        raise InputError("start rotation is not orthogonal; use a randomised Hadamard")


def _stats(features: CalibrationRows, gamma: float, before: Objective, after: Objective) -> dict[str, Any]:
    count = features.n_massive
    return {
        "gamma": gamma,
        "effective_weight": gamma**2 * count / features.total,
        "n_massive": count,
        "rows": len(features.rows),
        "total": features.total,
        "common_error_start": before.common,
        "common_error": after.common,
        "massive_error_start": before.massive,
        "massive_error": after.massive,
        "objective_start": before.value,
        "objective": after.value,
    }
