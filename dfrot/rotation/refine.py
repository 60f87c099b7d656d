"""DFRot's refinement of R1: weighted orthogonal Procrustes (arXiv 2412.00648, equations 1-8, algorithm 1).

Minimises L(R) = sum_common w |x R - Q(x R)|^2 + gamma^2 sum_massive |x R - Q(x R)|^2 over orthogonal R by turns:
quantization parameters per token for the present R, then the R that best maps the rows onto their quantized
images. Re-implemented from the paper; the weights go on after Q, which is scale-equivariant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.rotation.features import Features
from dfrot.rotation.polar import orthogonalise, orthogonality_error, polar
from dfrot.rotation.rowgrid import RowGrid
from dfrot.stage import Progress, silent

AUTO_WEIGHT = 10.0  # gamma^2 N_m / N of the paper's models at gamma 100
CHUNK = 1024


@dataclass(frozen=True)
class RefineSettings:
    """bits, symmetric, clip: the deployment quantizer of activations. gamma: weight of massive rows before squaring
    (paper: 100), or "auto": gamma^2 N_m / N = 10. rounds: at most. tol: stop when the objective falls by less than
    this share per round."""

    bits: int = 4
    symmetric: bool = False
    clip: float = 1.0
    gamma: float | str = "auto"
    rounds: int = 100
    tol: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        RowGrid(self.bits, self.symmetric, self.clip)
        if self.gamma != "auto" and not (isinstance(self.gamma, (int, float)) and 0 <= self.gamma < 1e6):
            raise InputError(f"gamma {self.gamma!r}: 'auto' or a number from 0 to 1e6 is needed (paper: 100)")
        if self.rounds < 0 or not 0 <= self.tol < 1:
            raise InputError(f"rounds {self.rounds}, tol {self.tol}: rounds >= 0 and 0 <= tol < 1 are needed")

    @property
    def grid(self) -> RowGrid:
        return RowGrid(self.bits, self.symmetric, self.clip)


@dataclass(frozen=True)
class Refinement:
    """matrix float64 [d, d]; curve: the objective per round (start first); accepted: the iterates kept, falling;
    best: index of the best in `curve`; orthogonality_error |R^T R - I|_max; stats: JSON."""

    matrix: Tensor
    curve: list[float]
    accepted: list[float]
    best: int
    orthogonality_error: float
    stats: dict[str, Any] = field(default_factory=dict)


def effective_gamma(features: Features, gamma: float | str) -> float:
    """The number that "auto" stands for on these features; 1 when nothing is massive."""
    if gamma != "auto":
        return float(gamma)
    count = features.n_massive
    return (AUTO_WEIGHT * features.total / count) ** 0.5 if count else 1.0


def refine(features: Features, start: Tensor, settings: RefineSettings, *, progress: Progress = silent) -> Refinement:
    """Refine `start` float64 [d, d] (a randomised Hadamard in the paper) on `features`."""
    if start.shape != (features.width, features.width):
        raise InputError(f"start rotation is {list(start.shape)}, the features have width {features.width}")
    gamma = effective_gamma(features, settings.gamma)
    weight = torch.where(features.massive, gamma**2 * features.weight, features.weight).double()
    best = matrix = start
    curve: list[float] = []
    accepted: list[float] = []
    first = last = (0.0, 0.0)
    best_at = 0
    for turn in range(settings.rounds + 1):
        progress("refine", turn, settings.rounds)
        error, product = _round(features, matrix.float(), weight, settings.grid)
        curve.append(float((weight * error).sum()))
        sums = (float((features.weight * error)[~features.massive].sum()), float(error[features.massive].sum()))
        if turn == 0 or curve[-1] < accepted[-1]:
            gain = 1.0 if turn == 0 else 1.0 - curve[-1] / accepted[-1]
            accepted.append(curve[-1])
            best, last, best_at = matrix, sums, turn
            first = sums if turn == 0 else first
            if gain < settings.tol or curve[-1] == 0:
                break
        elif turn - best_at > 3:
            break
        matrix = polar(product)
    final = orthogonalise(best)
    n_massive = max(features.n_massive, 1)
    n_common = max(features.total - features.n_massive, 1)
    stats = {
        "gamma": gamma,
        "effective_weight": gamma**2 * features.n_massive / features.total,
        "n_massive": features.n_massive,
        "rows": len(features.rows),
        "total": features.total,
        "rounds": len(curve) - 1,
        "common_error_start": first[0] / n_common,
        "common_error": last[0] / n_common,
        "massive_error_start": first[1] / n_massive,
        "massive_error": last[1] / n_massive,
        "objective_start": accepted[0],
        "objective": accepted[-1],
    }
    return Refinement(final, curve, accepted, best_at, orthogonality_error(final), stats)


def _round(features: Features, matrix: Tensor, weight: Tensor, grid: RowGrid) -> tuple[Tensor, Tensor]:
    """Squared error per row float64 [n] under R, and C = sum weight x^T Q(x R) float64 [d, d]."""
    error = torch.empty(len(features.rows), dtype=torch.float64)
    product = torch.zeros_like(matrix, dtype=torch.float64)
    for begin in range(0, len(features.rows), CHUNK):
        x = features.rows[begin : begin + CHUNK]
        y = x @ matrix
        q = grid.quantize(y)
        error[begin : begin + CHUNK] = (y - q).double().square_().sum(1)
        product += (x * weight[begin : begin + CHUNK, None].float()).T @ q
    return error, product
