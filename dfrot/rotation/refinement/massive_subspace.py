"""Massive rows first: the few directions that carry most of the objective, solved in their own small space.

Massive rows lie mostly in r of d dimensions (their large channels, and what else they share). What a rotation R does to
these is an r x d matrix W with orthonormal rows, so the alternation restricted to them (quantize L W + remainder,
Procrustes) costs r^2 d and not d^3, and can afford many more rounds and several step sizes, of which plain alternation
is the worst: it stops at the first set of codes that maps onto itself. The smallest rotation that takes the start's W
to the best W moves common rows in 2 r dimensions only. These must not be many: channel outliers that the start spreads
would be gathered again. So r <= d / 32, and r is halved until a sample of common rows does not notice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.rotation.refinement.calibration_rows import CalibrationRows
from dfrot.rotation.refinement.objective import row_errors
from dfrot.rotation.refinement.polar import polar
from dfrot.rotation.refinement.tiles import Tiles
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer

STEPS = ((1.0, 0.9), (1.5, 0.7), (1.8, 0.5), (1.8, 0.0))  # over-relaxation, momentum
ROUNDS = 40
MIN_GAIN = 1e-3  # relative: less is not worth moving for
MAX_MASSIVE_ROWS = 192  # massive rows that take part; more are thinned evenly
DIMENSIONS_PER_RANK = 32  # at most one dimension in 32
SAMPLE = 2048  # common rows whose error is watched
HARM = 1.01  # their mean error may rise by 1 %: the noise of such a sample
RANK_TOLERANCE = 1e-9  # of the largest singular value: smaller ones are rounding


def massive_first_start(rows: CalibrationRows, start: Tensor, quantizer: TokenQuantizer, tiles: Tiles) -> Tensor:
    """The rotation near `start` float64 [d, d] that serves massive rows best, of those tried.

    Returns `start` itself when nothing better was reached, or nothing that common rows tolerate."""
    massive = rows.rows[rows.massive]
    thinned = massive[:: -(-len(massive) // MAX_MASSIVE_ROWS)].double() if len(massive) else massive
    rank = min(len(thinned), max(1, start.shape[0] // DIMENSIONS_PER_RANK))
    common = (~rows.massive).nonzero().flatten()
    sample = rows.rows[common[:: max(1, len(common) // SAMPLE)]]
    limit = HARM * float(row_errors(sample, start, quantizer, tiles).sum())
    while rank:
        candidate = _alternate(thinned, rank, start, quantizer, tiles)
        if candidate is not start and float(row_errors(sample, candidate, quantizer, tiles).sum()) <= limit:
            return candidate
        rank //= 2
    return start


def _alternate(rows: Tensor, rank: int, start: Tensor, quantizer: TokenQuantizer, tiles: Tiles) -> Tensor:
    """The alternation for massive rows float64 [n, d] in their `rank` main directions.

    Returns `start` itself when that gains nothing."""
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    rank = min(rank, int((values > values[0] * RANK_TOLERANCE).sum()))
    loads, frame = (left * values)[:, :rank], right[:rank]
    start_image = frame @ start
    remainder = (rows - loads @ frame) @ start
    start_error = float(quantizer.error(loads @ start_image + remainder).sum())

    def attempt(step: tuple[float, float]) -> tuple[float, Tensor]:
        relax, momentum = step
        image, change = start_image, torch.zeros_like(start_image)
        best_image, best_error = start_image, start_error
        y = loads @ image + remainder
        for _ in range(ROUNDS):
            target = polar(loads.T @ (quantizer.quantize(y) - remainder))
            change = relax * (target - image) + momentum * change
            image = polar(image + change)
            y = loads @ image + remainder
            error = float(quantizer.error(y).sum())
            if error < best_error:
                best_image, best_error = image, error
        return best_error, best_image

    _, best_image = min(tiles.each(attempt, STEPS), key=lambda result: result[0])
    rotation = nearest_rotation_with_image(start, frame, best_image)
    error = float(quantizer.error(rows @ rotation).sum())  # the remainder moves a little, too
    return start if error > (1.0 - MIN_GAIN) * start_error else rotation


def nearest_rotation_with_image(start: Tensor, frame: Tensor, image: Tensor) -> Tensor:
    """The orthogonal matrix nearest to `start` [d, d] with frame [r, d] @ result = image [r, d], float64."""
    rank = len(frame)
    wanted = image @ start.T  # frame @ H = wanted, result = H @ start
    basis = torch.linalg.qr(torch.cat([frame, wanted]).T)[0]  # both lie in these 2 r dimensions
    old, new = basis.T @ frame.T, basis.T @ wanted.T
    old_complement, new_complement = (torch.linalg.qr(part, mode="complete")[0][:, rank:] for part in (old, new))
    align = polar(old_complement.T @ new_complement)  # rotate the complement as little as possible
    inner = old @ new.T + old_complement @ align @ new_complement.T
    inner.diagonal().sub_(1.0)
    result: Tensor = start + basis @ (inner @ (basis.T @ start))
    return result
