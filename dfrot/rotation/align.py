"""R1 and the signs of gains that turn what tokens share into a constant, which asymmetric activation grids absorb.

Norm outputs have a mean: half of their energy in the models measured. A per-token asymmetric grid covers [min, max], so
a constant on all channels moves it and does not widen it. The mean is another vector behind every norm, but a gain may
be negative: with gain sign(m R1), which the readers of the norm take back, the mean m becomes |m R1|. That is constant
where the entries of m R1 differ in sign alone. R1 is chosen so that they do for all norms at once, as in iterative
quantization (Gong and Lazebnik, CVPR 2011): signs s_l = sign(m_l R), then the orthogonal R that maps m_l nearest to
s_l / sqrt(d), in turns. There are fewer norms than channels, so nearly all means fit, and R differs from the matrix
that it started from in the directions of means and targets alone. (One direction that an offset absorbs: OffQ, arXiv
2606.07116.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.rotation.refinement.calibration_rows import CalibrationRows
from dfrot.rotation.refinement.polar import polar

ROUNDS = 40  # of signs and rotation
ANCHOR = 0.02  # weight of the start beside the means, whose weights add up to 1


def tap_means(rows: CalibrationRows) -> Tensor:
    """The mean row behind every norm, massive tokens left out, float64 [taps, d]."""
    common = ~rows.massive
    weight = rows.weight[common].double()
    tap = rows.tap[common]
    total = torch.zeros(len(rows.taps), rows.width, dtype=torch.float64)
    total.index_add_(0, tap, rows.rows[common].double() * weight[:, None])
    count = torch.zeros(len(rows.taps), dtype=torch.float64).index_add_(0, tap, weight)
    return total / count.clamp_min(1e-300)[:, None]


def aligned(start: Tensor, means: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Orthogonal float64 [d, d] under which the entries of each mean [n, d] have like magnitudes, near `start` [d, d].

    The best rotation is the polar factor of `a I + A^T W T`, A the means behind `start`, T the targets: the identity
    outside the span of both, so that no round costs more than a d x 2n factorisation."""
    size = start.shape[0]
    energy = means.square().sum(1, keepdim=True)
    now = (means / energy.sqrt().clamp_min(1e-300)) @ start
    weighted = now * energy / energy.sum().clamp_min(1e-300)
    turned, basis, inner = now, now.new_zeros(size, 1), now.new_zeros(1, 1)
    for _ in range(rounds):
        target = torch.sign(turned) * size**-0.5
        basis = torch.linalg.qr(torch.cat([now, target]).T).Q
        identity = torch.eye(basis.shape[1], dtype=basis.dtype)
        inner = polar(ANCHOR * identity + (weighted @ basis).T @ (target @ basis)) - identity
        turned = now + now @ basis @ inner @ basis.T
    return start + start @ basis @ inner @ basis.T


def gain_signs(matrix: Tensor, means: Tensor) -> Tensor:
    """+-1 float64 [n, d]: the gains that make every entry of the rotated means positive."""
    return torch.where(means @ matrix < 0, -1.0, 1.0).to(torch.float64)


def constant_share(matrix: Tensor, means: Tensor) -> float:
    """Energy of the means that lies in the constant behind `gain_signs`, as a share of all their energy."""
    constant = (means @ matrix).abs().mean(1).square().sum() * matrix.shape[0]
    return float(constant / means.square().sum().clamp_min(1e-300))


def mean_share(rows: CalibrationRows, means: Tensor) -> float:
    """Energy of the means [taps, d] as a share of the energy of the common rows."""
    common = ~rows.massive
    weight = rows.weight[common].double()
    energy = (rows.rows[common].double().square().sum(1) * weight).sum()
    count = torch.zeros(len(rows.taps), dtype=torch.float64).index_add_(0, rows.tap[common], weight)
    return float((means.square().sum(1) * count).sum() / energy.clamp_min(1e-300))
