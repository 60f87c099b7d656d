"""Scales of groups by GPTQ's own loss.

A grid that is fixed beforehand knows neither what GPTQ has added to the columns of a group by the time it reaches them
nor what their errors will cost. Here several scales are tried at that point: the columns of the group are rounded with
each, every column taking back the errors of those before it, and the squares of the scaled errors are what the group
adds to the loss once all later columns have adapted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.quant.rounding.grid import ColumnRounding, WeightGrid


def round_columns(columns: Tensor, corner: Tensor, rounding: ColumnRounding) -> tuple[Tensor, Tensor]:
    """Round columns float32 [n, N] one after the other: codes uint8 [n, N] and scaled errors float32 [n, N].

    corner: float32 [n, n], rows and columns of GPTQ's factor U that belong to these columns, transposed. The feedback
    of earlier columns is one matrix-vector product per column."""
    codes, errors = torch.empty(columns.shape, dtype=torch.uint8), torch.empty_like(columns)
    for i, pivot in enumerate(corner.diagonal().tolist()):
        column = columns[i]
        if i:
            column = torch.addmv(column, errors[:i].T, corner[i, :i], alpha=-1)
        codes[i], rounded = rounding.round(i, column)
        torch.sub(column, rounded, out=errors[i]).div_(pivot)
    return codes, errors


def searched(grid: WeightGrid, index: int, columns: Tensor, corner: Tensor, signed: bool) -> WeightGrid:
    """The grid of one group for the columns float32 [n, N] of group `index` as GPTQ finds them: of the proposals, for
    every row the one that adds least to the loss, the first of equals. corner: as for `round_columns`. signed: as for
    `WeightGrid.proposals`."""
    size, rows = columns.shape
    proposals = grid.proposals(index, columns, signed)
    count = proposals.scale.shape[0] // rows
    rounding = proposals.columns(torch.arange(size))
    _, errors = round_columns(columns.repeat(1, count), corner, rounding)
    least, best = torch.full((rows,), torch.inf), torch.zeros(rows, dtype=torch.int64)
    for number, loss in enumerate(errors.square_().sum(0).view(count, rows)):
        better = loss < least
        best[better], least = number, torch.where(better, loss, least)
    return proposals.selected(best * rows + torch.arange(rows))
