"""Massive rows first: the few rows that carry most of the objective, solved in their own small space.

N_m massive rows span r <= N_m of d dimensions. What a rotation R does to them is an r x d matrix W with orthonormal
rows, so their alternation (quantize L W, Procrustes) costs r^2 d and not d^3, and can afford many more rounds and
several ways of stepping, of which plain alternation is the worst: it stops at the first set of codes that maps onto
itself. The smallest rotation that takes the start's W to the best one found moves common rows in 2 r dimensions only,
to which they are indifferent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.rotation.polar import polar
from dfrot.rotation.rowgrid import RowGrid
from dfrot.rotation.tiles import Tiles

STEPS = ((1.0, 0.9), (1.5, 0.7), (1.8, 0.5), (1.8, 0.0))  # over-relaxation, momentum
ROUNDS = 40
GAIN = 1e-3  # relative: less is not worth moving for
LIMIT = 192  # rows that take part; more are thinned evenly


def anchor(massive: Tensor, start: Tensor, grid: RowGrid, tiles: Tiles) -> Tensor:
    """The rotation nearest to `start` float64 [d, d] that serves massive rows [n, d] best, of those found.

    Returns `start` itself when nothing better was found, or when the rows are no few (more than d / 4)."""
    rows = massive[:: -(-len(massive) // LIMIT)].double() if len(massive) else massive
    if not 0 < len(rows) <= start.shape[0] // 4:
        return start
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    rank = int((values > values[0] * 1e-9).sum())
    loads, frame = (left * values)[:, :rank], right[:rank]
    first = frame @ start
    least = float(grid.error(loads @ first).sum())

    def attempt(step: tuple[float, float]) -> tuple[float, Tensor]:
        relax, momentum = step
        image, change = first, torch.zeros_like(first)
        best, low = first, least
        for _ in range(ROUNDS):
            target = polar(loads.T @ grid.quantize(loads @ image))
            change = relax * (target - image) + momentum * change
            image = polar(image + change)
            error = float(grid.error(loads @ image).sum())
            if error < low:
                best, low = image, error
        return low, best

    low, best = min(tiles.each(attempt, STEPS), key=lambda found: found[0])
    return start if low > (1.0 - GAIN) * least else moved(start, frame, best)


def moved(start: Tensor, frame: Tensor, image: Tensor) -> Tensor:
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
