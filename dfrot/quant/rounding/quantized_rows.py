"""Rows of a weight that an algorithm has quantized, tile by tile, whoever did so.

Tiles depend on shapes only, so that a row's bytes do not depend on the number of ranks that share a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.quant.rounding.grid import WeightGrid
from dfrot.quant.rounding.hessian_error import fraction, tile_height
from dfrot.quant.rounding.travel import grid_from_plain, grid_to_plain

HEIGHT = 768  # rows of a tile: shorter ones cost more than they save, taller ones cannot be shared
SHORTEST = 256  # rows of a weight's halves, where it has fewer than two tiles
ALIGNED = 32  # rows: whole vectors of the processor


def row_slices(rows: int, columns: int) -> list[slice]:
    """The tiles of a weight of this shape, of about `HEIGHT` rows, which also bounds their temporaries."""
    count = max(1, rows // HEIGHT, min(2, rows // SHORTEST))
    height = -(-rows // count)
    height = min(-(-height // ALIGNED) * ALIGNED, tile_height(columns))
    return [slice(begin, min(begin + height, rows)) for begin in range(0, rows, height)]


@dataclass(frozen=True)
class QuantizedRows:
    """Codes of rows, their grid and, per row, what they cost; float64 where nothing else is said."""

    codes: Tensor
    """uint8 [n, K]."""
    grid: WeightGrid
    """Of these rows."""
    error: Tensor
    """[n]: output error of these codes."""
    rounding: Tensor
    """[n]: output error of rounding to nearest."""
    energy: Tensor
    """[n]: energy of the output itself."""
    worse: Tensor
    """bool [n]: the algorithm's error is larger than that of rounding, on the damped Hessian."""
    distance: Tensor
    """[n]: squared error of the weight itself."""
    size: Tensor
    """[n]: sum of squares of the weight."""

    def to_plain(self) -> dict[str, Any]:
        """As a tree that travels between processes; `from_plain` is the inverse."""
        return {**vars(self), "grid": grid_to_plain(self.grid)}

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> QuantizedRows:
        """The rows that `to_plain` took apart."""
        return QuantizedRows(**{**plain, "grid": grid_from_plain(plain["grid"])})

    @staticmethod
    def joined(parts: Sequence[QuantizedRows]) -> QuantizedRows:
        """One below the other."""
        if len(parts) == 1:
            return parts[0]
        grid = parts[0].grid.joined([part.grid for part in parts[1:]])
        fields = [name for name in vars(parts[0]) if name != "grid"]
        return QuantizedRows(grid=grid, **{name: torch.cat([getattr(part, name) for part in parts]) for name in fields})

    def stats(self, rows: slice) -> dict[str, Any]:
        """What is reported of the weight that lies in these rows."""
        energy = float(self.energy[rows].sum())
        return {
            "output_error": fraction(float(self.error[rows].sum()), energy),
            "output_error_rtn": fraction(float(self.rounding[rows].sum()), energy),
            "weight_error": fraction(float(self.distance[rows].sum()), float(self.size[rows].sum())),
        }
