"""Quantized weights as trees of plain values and tensors, in which they travel between processes."""

from __future__ import annotations

from typing import Any

from dfrot.quant.rounding.fp4_grid import Fp4Grid
from dfrot.quant.rounding.grid import Grid, Quantized, WeightGrid

GRIDS: dict[str, type[Any]] = {"integers": Grid, "fp4": Fp4Grid}


def grid_to_plain(grid: WeightGrid) -> dict[str, Any]:
    """The grid's fields; `grid_from_plain` is the inverse."""
    return {"kind": next(name for name, kind in GRIDS.items() if isinstance(grid, kind)), **vars(grid)}


def grid_from_plain(plain: dict[str, Any]) -> WeightGrid:
    """The grid that `grid_to_plain` took apart."""
    fields = dict(plain)
    grid: WeightGrid = GRIDS[fields.pop("kind")](**fields)
    return grid


def to_plain(result: Quantized) -> dict[str, Any]:
    """The result's fields; `from_plain` is the inverse."""
    return {**vars(result), "grid": grid_to_plain(result.grid)}


def from_plain(plain: dict[str, Any]) -> Quantized:
    """The result that `to_plain` took apart."""
    return Quantized(**{**plain, "grid": grid_from_plain(plain["grid"])})
