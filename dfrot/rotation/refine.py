"""DFRot's refinement of R1: weighted orthogonal Procrustes (arXiv 2412.00648, equations 1-8, algorithm 1).

Minimises L(R) = sum_common w |x R - Q(x R)|^2 + gamma^2 sum_massive |x R - Q(x R)|^2 over orthogonal R by turns:
quantization parameters per token for the present R, then the R that best maps the rows onto their quantized
images. Re-implemented from the paper, with three changes that make it fast:

1. Massive rows first (`anchor.py`). They carry most of the objective and live in a few dimensions, where the
   alternation costs next to nothing and can be run many times.
2. The Procrustes step is solved to first order in a fixed eigenbasis (`descent.py`), not by a decomposition per round.
3. Steps are over-relaxed and carry momentum (Nesterov's k / (k + 3), at most 0.75), dropped whenever the objective is
   above its best: plain alternation creeps, because codes change only at rounding thresholds.

The range of a dynamic quantizer does not minimise the error, so the objective may rise from one iterate to the next in
the paper's form as in this one. Iterates are accepted only when they are better than all before; after a few that are
not, the search returns to the best one with half the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.rotation.anchor import anchor
from dfrot.rotation.descent import Round, capped
from dfrot.rotation.features import Features
from dfrot.rotation.objective import Objective, effective_gamma, evaluate
from dfrot.rotation.polar import orthogonalise, orthogonality_error
from dfrot.rotation.rowgrid import RowGrid
from dfrot.rotation.tiles import Tiles
from dfrot.stage import Progress, silent

MOMENTUM = 0.75
STEP = 1.5  # over-relaxation
PATIENCE = 4  # iterates above the best before the search returns to it
WINDOW = 12  # rounds over which the relative improvement is judged
MIN_STEP = 1 / 16
HALF_FROM = 1024  # width from which bfloat16 products pay
PRECISIONS = ("auto", "float32", "bfloat16")
Watch = Callable[[int, Callable[[], Tensor]], None]
"""`watch(k, matrix)`: called when iterate k of the curve is known to be the best so far, and for the anchored start
before it is measured; matrix() builds it (float64 [d, d])."""


@dataclass(frozen=True)
class RefineSettings:
    """bits, symmetric, clip: the deployment quantizer of activations. gamma: weight of massive rows before squaring
    (paper: 100), or "auto": gamma^2 N_m / N = 10. rounds: at most. tol: stop when the objective falls by less than
    this share per round (mean over 12). precision: of the products; "auto" takes bfloat16 where the processor has
    it and the width is at least 1024. The refinement draws nothing at random; seed is that of the start, recorded."""

    bits: int = 4
    symmetric: bool = False
    clip: float = 1.0
    gamma: float | str = "auto"
    rounds: int = 100
    tol: float = 5e-4
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        RowGrid(self.bits, self.symmetric, self.clip)
        if self.gamma != "auto" and not (isinstance(self.gamma, (int, float)) and 0 <= self.gamma < 1e6):
            raise InputError(f"gamma {self.gamma!r}: 'auto' or a number from 0 to 1e6 is needed (paper: 100)")
        if self.rounds < 0 or not 0 <= self.tol < 1:
            raise InputError(f"rounds {self.rounds}, tol {self.tol}: rounds >= 0 and 0 <= tol < 1 are needed")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r}: one of {', '.join(PRECISIONS)} is needed")

    @property
    def grid(self) -> RowGrid:
        return RowGrid(self.bits, self.symmetric, self.clip)

    def half(self, width: int) -> bool:
        """Whether products are made in bfloat16 on this machine."""
        if self.precision == "auto":
            return width >= HALF_FROM and fast_bfloat16()
        return self.precision == "bfloat16"


@dataclass(frozen=True)
class Refinement:
    """matrix float64 [d, d]; curve: the objective at every iterate (start first, then the anchored one); accepted: the
    falling sequence of those kept; best: index of the last kept in `curve`; orthogonality_error |R^T R - I|_max;
    stats: JSON, with start and final errors measured in float32 products and float64 sums."""

    matrix: Tensor
    curve: list[float]
    accepted: list[float]
    best: int
    orthogonality_error: float
    stats: dict[str, Any] = field(default_factory=dict)


class _Search:
    """Momentum with restarts around the best iterate; matrices in the eigenbasis of `Round`."""

    def __init__(self, settings: RefineSettings, turned: Tensor) -> None:
        self.settings = settings
        self.turned = self.best = turned
        self.skew: Tensor | None = None
        self.step, self.age, self.above = STEP, 0, 0
        self.curve: list[float] = []
        self.accepted: list[tuple[int, float]] = []

    def record(self, value: float) -> bool:
        """Note the objective at the present iterate; True when it is accepted."""
        self.curve.append(value)
        if self.accepted and not value < self.accepted[-1][1]:
            self.skew = None
            self.above += 1
            return False
        self.accepted.append((len(self.curve) - 1, value))
        self.best, self.above = self.turned, 0
        return True

    def finished(self) -> bool:
        """Whether rounds, improvement or step size are used up."""
        rounds = len(self.curve) - 1
        if rounds >= self.settings.rounds or self.accepted[-1][1] == 0.0 or self.step < MIN_STEP:
            return True
        if rounds < WINDOW:
            return False
        before = min(value for at, value in self.accepted if at <= rounds - WINDOW)
        return self.accepted[-1][1] > before * (1.0 - WINDOW * self.settings.tol)

    def advance(self, rounds: Round, product: Tensor) -> None:
        """The next iterate from C at the present one."""
        if self.above >= PATIENCE:
            self.turned, self.skew, self.above, self.age = self.best, None, 0, 0
            self.step /= 2
            _, product = rounds.measure(self.turned)
        skew = rounds.direction(self.turned, product).mul_(self.step)
        if self.skew is not None:
            skew.add_(self.skew, alpha=min(MOMENTUM, self.age / (self.age + 3)))
        self.skew = capped(skew)
        self.age += 1
        self.turned = rounds.turn(self.turned, self.skew)


def refine(
    features: Features,
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
    with Tiles() as tiles:
        half, total = settings.half(features.width), settings.rounds
        begin = start
        if features.n_massive and gamma and total:
            begin = anchor(features, start, settings.grid, tiles)
        shift = int(begin is not start)  # the anchored rotation is an iterate of its own
        if shift and watch is not None:
            watch(1, lambda: begin)
        rounds = Round(features, gamma, settings.grid, tiles, half)
        search = _Search(settings, rounds.enter(begin))
        while True:
            progress("refine", min(len(search.curve), total), total)
            value, product = rounds.measure(search.turned)
            if search.record(value) and watch is not None and not (shift and len(search.curve) == 1):
                watch(len(search.curve) - 1 + shift, partial(rounds.leave, search.best))
            if search.finished():
                break
            search.advance(rounds, product)
        progress("refine", total, total)
        found = search.accepted[-1][0]
        matrix = rounds.leave(search.best) if found else begin
        del rounds  # its copy of the rows and its eigenbasis are not needed for what follows
        matrix = orthogonalise(matrix) if found or shift else start
        before, after = (evaluate(features, one, settings.grid, gamma, tiles) for one in (start, matrix))
    curve = [before.value] * shift + search.curve
    accepted = [(at + shift, value) for at, value in search.accepted]
    if shift:
        accepted = [(0, before.value)] + [point for point in accepted if point[1] < before.value]
    if after.value > before.value:  # nothing was gained, whatever the rounding of the products says
        accepted, matrix, after = accepted[:1], start, before
    stats = _stats(features, gamma, before, after) | {
        "rounds": len(search.curve) - 1,
        "anchored": bool(shift),
        "precision": "bfloat16" if half else "float32",
    }
    values = [value for _, value in accepted]
    return Refinement(matrix, curve, values, accepted[-1][0], orthogonality_error(matrix), stats)


def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX512-BF16 or AMX); emulation would be slower."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


def _check(features: Features, start: Tensor) -> None:
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


def _stats(features: Features, gamma: float, before: Objective, after: Objective) -> dict[str, Any]:
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
