"""Scales (and zero points) that several weights share: per tensor, channel, group of columns or block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.inputs.stored_parts import StoredParts
from dfrot.number_formats import exponents

SCALE_DTYPES = tuple(
    getattr(torch, name)
    for name in ("float32", "bfloat16", "float16", "uint8", "float8_e4m3fn", "float8_e8m0fnu")
    if hasattr(torch, name)
)
"""Dtypes of scales. uint8 and e8m0 hold exponents."""
FLOAT_SCALES = (torch.float16, torch.bfloat16, torch.float32)
"""Those of formats whose scales are numbers of 16 or 32 bits."""


@dataclass(frozen=True)
class ScaleGrid:
    """Which weights of a matrix share a scale."""

    rows: int
    """Rows (output channels) of the weight."""
    cols: int
    """Columns (inputs)."""
    row_step: int
    """Rows that share a scale."""
    col_step: int
    """Columns that share a scale."""

    @classmethod
    def of(cls, rows: int, cols: int, row_step: int | None = None, col_step: int | None = None) -> ScaleGrid:
        """A grid with these steps; None: all rows or all columns together."""
        return cls(rows, cols, row_step or max(rows, 1), col_step or max(cols, 1))

    @property
    def shape(self) -> tuple[int, int]:
        """Scales along rows and columns. Those at the edges serve fewer weights."""
        return -(-self.rows // self.row_step), -(-self.cols // self.col_step)

    def require(self, parts: StoredParts, part: str) -> None:
        """Raise InputError unless part `part` has a value for every cell."""
        shape = parts.entry(part).shape
        count = math.prod(self.shape)
        flat = math.prod(shape) == count and (count == 1 or len(shape) == 1)
        if shape != self.shape and not (flat and 1 in self.shape):
            parts.refuse(part, f"has shape {list(shape)}, the codes need {list(self.shape)}")

    def touched(self, begin: int, end: int) -> slice:
        """The rows of cells that hold the weights of rows begin .. end."""
        return slice(begin // self.row_step, -(-end // self.row_step))

    def read(self, parts: StoredParts, part: str, begin: int, end: int) -> Tensor:
        """Of a part with a value per cell, the rows of cells of weight rows begin .. end, as they are stored."""
        cells = self.touched(begin, end)
        if parts.entry(part).shape[:1] == self.shape[:1]:
            return parts.read_rows(part, cells.start, cells.stop).reshape(-1, self.shape[1])
        return parts.read(part).reshape(self.shape)[cells]

    def spread(self, values: Tensor, begin: int, end: int, columns: Tensor | None = None) -> Tensor:
        """A value for each weight of rows begin .. end. values: of the cells that `touched` names; columns: the cell of
        each column, where they are not consecutive."""
        row_cells = torch.arange(begin, end) // self.row_step - self.touched(begin, end).start
        if columns is None:
            columns = torch.arange(self.cols) // self.col_step
        return values.index_select(0, row_cells).index_select(1, columns)


def read_scales(grid: ScaleGrid, parts: StoredParts, part: str, begin: int, end: int) -> Tensor:
    """`ScaleGrid.read` of a part that holds scales, as float32; exponents as powers of two."""
    values = grid.read(parts, part, begin, end)
    is_exponent = values.dtype.itemsize == 1 and values.dtype != torch.float8_e4m3fn
    return exponents(values) if is_exponent else values.float()


def group_columns(parts: StoredParts, part: str, cols: int, groups: int) -> Tensor | None:
    """The group of each column, from the part that act-order stores; None where groups are consecutive columns.

    Raises InputError for a group that does not exist."""
    if part not in parts:
        return None
    parts.require(part, (torch.int32, torch.int64), 1)
    parts.require_shape(part, (cols,))
    columns = parts.read(part).to(torch.int64)
    if bool((columns == -1).all()):  # allocated and never set
        return None
    if cols and not (int(columns.min()) >= 0 and int(columns.max()) < groups):
        parts.refuse(part, f"names groups {int(columns.min())} .. {int(columns.max())}, there are {groups}")
    return columns
