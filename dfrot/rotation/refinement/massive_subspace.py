"""Massive rows first: the few directions that carry most of the objective, solved in their own small space.

Massive rows lie mostly in r of d dimensions (their spikes, and what else they share). What a rotation R does to these
is an r x d matrix W with orthonormal rows, so the alternation restricted to them (quantize L W + the rest, Procrustes)
costs r^2 d and not d^3, and can afford many more rounds and several ways of stepping, of which plain alternation is
the worst: it stops at the first set of codes that maps onto itself. The smallest rotation that takes the start's W to
the best one found moves common rows in 2 r dimensions only. These must not be many: channel outliers that the start
spreads would be gathered again. So r <= d / 32, and r is halved until a sample of common rows does not notice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.rotation.refinement.features import CalibrationRows
from dfrot.rotation.refinement.objective import row_errors
from dfrot.rotation.refinement.polar import polar
from dfrot.rotation.refinement.row_grid import TokenQuantizer
from dfrot.rotation.refinement.tiles import Tiles

STEPS = ((1.0, 0.9), (1.5, 0.7), (1.8, 0.5), (1.8, 0.0))  # over-relaxation, momentum
ROUNDS = 40
GAIN = 1e-3  # relative: less is not worth moving for
LIMIT = 192  # massive rows that take part; more are thinned evenly
SHARE = 32  # at most one dimension in 32
SAMPLE = 2048  # common rows that watch
HARM = 1.01  # their mean error may rise by 1 %: the noise of such a sample


def massive_first_start(features: CalibrationRows, start: Tensor, grid: TokenQuantizer, tiles: Tiles) -> Tensor:
    """The rotation nearest to `start` float64 [d, d] that serves massive rows best, of those found.

    Returns `start` itself when nothing better was found, or nothing that common rows tolerate."""
    massive = features.rows[features.massive]
    rows = massive[:: -(-len(massive) // LIMIT)].double() if len(massive) else massive
    rank = min(len(rows), max(1, start.shape[0] // SHARE))
    common = (~features.massive).nonzero().flatten()
    sample = features.rows[common[:: max(1, len(common) // SAMPLE)]]
    limit = HARM * float(row_errors(sample, start, grid, tiles).sum())
    while rank:
        found = _settle(rows, rank, start, grid, tiles)
        if found is not start and float(row_errors(sample, found, grid, tiles).sum()) <= limit:
            return found
        rank //= 2
    return start


def _settle(rows: Tensor, rank: int, start: Tensor, grid: TokenQuantizer, tiles: Tiles) -> Tensor:
    """The alternation for massive rows float64 [n, d] in their `rank` main directions."""
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    rank = min(rank, int((values > values[0] * 1e-9).sum()))
    loads, frame = (left * values)[:, :rank], right[:rank]
    first = frame @ start
    rest = (rows - loads @ frame) @ start
    least = float(grid.error(loads @ first + rest).sum())

    def attempt(step: tuple[float, float]) -> tuple[float, Tensor]:
        relax, momentum = step
        image, change = first, torch.zeros_like(first)
        best, low = first, least
        y = loads @ image + rest
        for _ in range(ROUNDS):
            target = polar(loads.T @ (grid.quantize(y) - rest))
            change = relax * (target - image) + momentum * change
            image = polar(image + change)
            y = loads @ image + rest
            error = float(grid.error(y).sum())
            if error < low:
                best, low = image, error
        return low, best

    _, best = min(tiles.each(attempt, STEPS), key=lambda found: found[0])
    found = nearest_rotation_with_image(start, frame, best)
    low = float(grid.error(rows @ found).sum())  # the rest moves a little, too
    return start if low > (1.0 - GAIN) * least else found


def nearest_rotation_with_image(start: Tensor, frame: Tensor, image: Tensor) -> Tensor:
    """The orthogonal matrix nearest to `start` [d, d] with frame [r, d] @ result = image [r, d], float64."""
    rank = len(frame)
    wanted = image @ start.T  # frame @ H = wanted, result = H @ start
    basis = torch.linalg.qr(torch.cat([frame, wanted]).T)[0]  # both lie in these 2 r dimensions
    old, new = basis.T @ frame.T, basis.T @ wanted.T
    old_rest, new_rest = (torch.linalg.qr(one, mode="complete")[0][:, rank:] for one in (old, new))
    align = polar(old_rest.T @ new_rest)  # turn the rest as little as possible
    inner = old @ new.T + old_rest @ align @ new_rest.T
    inner.diagonal().sub_(1.0)
    result: Tensor = start + basis @ (inner @ (basis.T @ start))
    return result
