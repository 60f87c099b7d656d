"""The refinement as the paper states it, without optimisations: the baseline of `refine` (arXiv 2412.00648).

Each round, in float32 and on all rows at once: Y = X R, B = Q(Y), C = (w X)^T B, R = U V^T of the full singular
value decomposition of C. Only the left factor is weighted (Q is scale-equivariant). Sums of the objective in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dfrot.rotation.refinement.calibration_rows import CalibrationRows
from dfrot.rotation.refinement.polar import polar
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer


def straightforward(
    features: CalibrationRows,
    start: Tensor,
    grid: TokenQuantizer,
    gamma: float,
    rounds: int,
    ready: Callable[[int], None],
    watch: Callable[[int, float], None],
) -> Tensor:
    """Alternate `rounds` times between quantization and rotation from `start` [d, d]; the last iterate, float32 [d, d].

    gamma: weight of massive rows. `ready(k)` is called when iterate k exists (0 is the start), `watch(k, objective)`
    when its objective is known, which is in the middle of the next round; the last iterate is measured too.
    """
    weight = torch.where(features.massive, gamma**2 * features.weight, features.weight)
    matrix = start.float()
    for k in range(rounds + 1):
        ready(k)
        y = features.rows @ matrix
        quantized = grid.quantize(y)
        error = y.sub_(quantized).square_().sum(1, dtype=torch.float64)
        watch(k, float((weight * error).sum()))
        del y
        if k < rounds:
            matrix = polar((features.rows * weight[:, None]).T @ quantized)
    return matrix
