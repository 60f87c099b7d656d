"""Quantized weights as trees of plain values and tensors, in which they travel between processes."""

from __future__ import annotations

from typing import Any

from dfrot.quant.fp4_grid import Fp4Grid
from dfrot.quant.grid import Grid, Quantized, WeightGrid

GRIDS: dict[str, type[Any]] = {"integers": Grid, "fp4": Fp4Grid}


def to_plain(result: Quantized) -> dict[str, Any]:
    """The result's fields; `from_plain` is the inverse."""
    kind = next(name for name, grid in GRIDS.items() if isinstance(result.grid, grid))
    return {"codes": result.codes, "stats": result.stats, "second": result.second, "kind": kind, **_fields(result.grid)}


def from_plain(plain: dict[str, Any]) -> Quantized:
    """The result that `to_plain` took apart."""
    rest = dict(plain)
    codes, stats, second, kind = (rest.pop(name) for name in ("codes", "stats", "second", "kind"))
    return Quantized(codes, GRIDS[kind](**rest), stats, second)


def _fields(grid: WeightGrid) -> dict[str, Any]:
    return dict(vars(grid))
