"""A head whose most frequent tokens have two rows of codes (dfrot/quant/second_rows.py)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dfrot.quant.rounding.grid import Grid, Quantized
from dfrot.quant.rounding.hessian_error import fraction, output_errors, weight_error


def stacked(weight: Tensor, first: Quantized, second: Quantized, ids: Tensor, hessian: Tensor | None) -> Quantized:
    """One result of both. weight: float32 [N, K]. first: of the weight. second: of what `first` leaves of the rows
    `ids`, int32 ascending. hessian: float [K, K] for the output error of the sum; None: it is not reported."""
    grid, more = first.grid, second.grid
    assert isinstance(grid, Grid)
    assert isinstance(more, Grid)
    zero = None if grid.zero is None or more.zero is None else torch.cat([grid.zero, more.zero])
    both = Grid(torch.cat([grid.scale, more.scale]), zero, grid.bits, grid.group)
    result = Quantized(torch.cat([first.codes, second.codes]), both, {}, ids)
    rounded = result.dequantize()
    stats = {**first.stats, "second_rows": len(ids), "weight_error": weight_error(weight, rounded)}
    if hessian is not None:
        hessian = hessian.float()
        error = float(output_errors(weight - rounded, hessian).sum())
        stats["output_error"] = fraction(error, float(output_errors(weight, hessian).sum()))
    return replace(result, stats=stats)
