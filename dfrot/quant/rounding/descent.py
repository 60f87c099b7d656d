"""Coordinate descent on the integers that GPTQ chose (CDQuant, arXiv 2406.17542; QuantEase, arXiv 2309.01885).

GPTQ fixes a column for good before it knows what the later ones can take back. Here every column is rounded again, to
what is best for it while all others stay: with E = W - Q and H damped as GPTQ damps it, the error tr(E H E^T) as a
function of column j of Q is a parabola with its vertex at q_j + (E H)_j / H_jj, so that the nearest grid point is best.
The error never grows, and a pass costs as much as GPTQ itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.quant.rounding.grid import WeightGrid
from dfrot.quant.rounding.hessian_error import added_error, damped, output_errors

BLOCK = 128  # columns between two updates of all gradients


def damped_errors(error: Tensor, hessian: Tensor, added: float) -> Tensor:
    """e (H + added) e^T for every row of `error` float32 [N, K]: float64 [N]."""
    return output_errors(error, hessian) + added_error(error, added)


def descend(
    weight: Tensor, hessian: Tensor, added: float, grid: WeightGrid, codes: Tensor, passes: int
) -> tuple[Tensor, Tensor]:
    """Codes uint8 [N, K] for weight float32 [N, K], no worse than `codes` for any row under the Hessian float32 [K, K]
    with `added` on its diagonal, and their errors under it, float64 [N]. passes: over all columns; it stops early when
    nothing changes."""
    values, changed = grid.decode(codes).T.contiguous(), codes.T.contiguous()
    with damped(hessian, added):
        gradient = hessian @ (weight.T - values)  # [K, N]
        for _ in range(passes):
            if not _one_pass(hessian, grid, gradient, values, changed):
                break
    before = damped_errors(weight - grid.decode(codes), hessian, added)
    after = damped_errors(weight - values.T, hessian, added)
    better = after < before
    return torch.where(better[:, None], changed.T, codes).contiguous(), torch.where(better, after, before)


def _one_pass(hessian: Tensor, grid: WeightGrid, gradient: Tensor, values: Tensor, codes: Tensor) -> bool:
    """Round every column again, in place; whether any changed. hessian: damped. gradient, values: float32 [K, N],
    codes: uint8 [K, N].

    As in GPTQ, the feedback inside a block of columns is gathered from the left, beyond it by one matrix product."""
    size, pivots, moved = len(hessian), hessian.diagonal().tolist(), False
    for begin in range(0, size, BLOCK):
        block = torch.arange(begin, min(begin + BLOCK, size))
        corner = hessian[begin : begin + BLOCK, begin : begin + BLOCK].T.contiguous()
        columns, changes = grid.columns(block), torch.zeros(len(block), codes.shape[1])
        for i, column in enumerate(block.tolist()):
            slope = gradient[column]
            if i:
                slope = torch.addmv(slope, changes[:i].T, corner[i, :i], alpha=-1)
            codes[column], rounded = columns.round(i, torch.add(values[column], slope, alpha=1 / pivots[column]))
            torch.sub(rounded, values[column], out=changes[i])
            values[column] = rounded
        if bool(changes.any()):
            gradient.addmm_(hessian[:, begin : begin + BLOCK], changes, alpha=-1)
            moved = True
    return moved
