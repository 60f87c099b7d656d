"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, and let later columns compensate the error.

Minimises `tr(E H E^T)`, E = W - Q(W), over codes on a grid that is fixed beforehand from the original rows (also
per group: "static groups", so column order never changes which scale a weight uses). With H = R R^T, R upper
triangular, U = R^-1 is the upper Cholesky factor of H^-1 and holds every update of the algorithm: one Cholesky
of the flipped matrix and one triangular inverse, in float64, instead of two Choleskys and an inverse.

The loss comes for free: the squares of the scaled errors add up to `e (H + damping) e^T` for each row.
Rows are independent, so linears that read the same activations are quantized as one tall matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.quant import rtn
from dfrot.quant.descent import descend
from dfrot.quant.grid import Grid, Quantized, WeightGrid
from dfrot.quant.hessian_error import added_error, fraction, output_errors, row_tiles, weight_error
from dfrot.quant.options import AlgorithmOptions
from dfrot.quant.scale_fit import fitted_scales
from dfrot.quant.scheme import QuantScheme

BLOCK = 128  # columns between two updates of everything to the right, as in the paper
RANGES = (0.85, 0.9, 0.95)  # of a row, in multiples of that of the clip search; wider ones win in 6 % of all rows
RETRIES = (1, 2, 5, 10, 25, 50, 100)  # multiples of the damping, up to the whole mean diagonal


@dataclass(frozen=True)
class Factor:
    """A factored Hessian [K, K]."""

    upper: Tensor
    """U float32 [K, K] with H^-1 = U^T U, rows and columns in `order`."""
    order: Tensor
    """int64 [K]: the columns in the order in which they are rounded."""
    dead: Tensor
    """bool [K]: columns that no calibration token activates."""
    damping: float
    """What was added to the diagonal, as a share of its mean."""
    added: float
    """What was added to the diagonal."""


def factor(hessian: Tensor, options: AlgorithmOptions) -> Factor | str:
    """Damp and factor a Hessian [K, K]; more damping is tried when it is not positive definite.

    Returns the reason as text when no damping helps; the caller then rounds to nearest and reports it."""
    if not bool(torch.isfinite(hessian).all()):
        return "the Hessian holds NaN or Inf"
    size = hessian.shape[0]
    diagonal = hessian.diagonal().double()
    dead = diagonal <= 0
    if bool(dead.all()):
        return "no input channel is ever active"
    mean = float(diagonal[~dead].mean())
    order = torch.arange(size)
    if options.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    reverse = order.flip(0)
    flipped = hessian[reverse[:, None], reverse[None, :]].double()
    for multiple in RETRIES:
        damping = min(options.damping * multiple, 1.0)
        flipped.diagonal().copy_((torch.where(dead, 1.0, diagonal) + damping * mean)[reverse])
        lower, info = torch.linalg.cholesky_ex(flipped)
        if int(info) == 0:
            del flipped  # at 14336 columns each of these matrices is 1.6 GB
            inverse = torch.eye(size, dtype=torch.float64)
            torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
            del lower
            upper = inverse.float().flip(0, 1)
            if bool(torch.isfinite(upper).all()):
                return Factor(upper, order, dead, damping, damping * mean)
            return f"the factor of the Hessian overflows float32 at damping {damping:g}"
        if damping >= 1.0:
            break
    return f"the Hessian is not positive definite even with damping {damping:g}"


def solve(weight: Tensor, grid: WeightGrid, factor: Factor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [N, K] for weight float32 [N, K], and each row's damped loss float64 [N].

    Columns lie as rows of a [K, N] matrix, so that every step works on contiguous vectors of length N. Inside a
    block the feedback is gathered from the left (one matrix-vector product per column), beyond it by one GEMM.
    """
    n, k = weight.shape
    remaining = weight.T[factor.order].contiguous()
    codes = torch.empty(k, n, dtype=torch.uint8)
    loss = torch.zeros(n, dtype=torch.float64)
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        corner = factor.upper[begin:end, begin:end].T.contiguous()
        pivots = corner.diagonal().tolist()
        errors = torch.empty(end - begin, n)
        grid_columns = grid.columns(factor.order[begin:end])
        for i, pivot in enumerate(pivots):
            column = remaining[begin + i]
            if i:
                column = torch.addmv(column, errors[:i].T, corner[i, :i], alpha=-1)
            codes[begin + i], rounded = grid_columns.round(i, column)
            torch.sub(column, rounded, out=errors[i]).div_(pivot)
        loss += errors.square().sum(0, dtype=torch.float64)
        if end < k:
            remaining[end:].addmm_(factor.upper[begin:end, end:].T, errors, alpha=-1)
    restored = torch.empty_like(codes)
    restored[factor.order] = codes
    return restored.T.contiguous(), loss


def _solve_ranges(
    weight: Tensor, grid: WeightGrid, factor: Factor, options: AlgorithmOptions
) -> tuple[Tensor, WeightGrid, Tensor]:
    """Codes uint8 [N, K], their grid and damped loss float64 [N]: with `descent`, where a row has one scale, those of
    the range with the least loss. The clip search that made `grid` judged by rounding to nearest, for which wider
    ranges are best."""
    codes, loss = solve(weight, grid, factor)
    if not isinstance(grid, Grid) or grid.scale.shape[1] > 1 or not (options.mse_clip and options.descent):
        return codes, grid, loss
    scale = grid.scale
    for ratio in RANGES:
        other = replace(grid, scale=(grid.scale.float() * ratio).bfloat16())
        other_codes, other_loss = solve(weight, other, factor)
        better = other_loss < loss
        codes = torch.where(better[:, None], other_codes, codes)
        scale = torch.where(better[:, None], other.scale, scale)
        loss = torch.where(better, other_loss, loss)
    return codes, replace(grid, scale=scale), loss


class _Rows(NamedTuple):
    """Quantized rows and, per row, their errors."""

    codes: Tensor
    """uint8 [n, K]."""
    scale: Tensor | None
    """bfloat16 [n, G] of a grid of integers."""
    error: Tensor
    """float64 [n]: output error of these codes."""
    rounding: Tensor
    """float64 [n]: output error of rounding to nearest."""
    energy: Tensor
    """float64 [n]: energy of the output itself."""
    worse: Tensor
    """bool [n]: GPTQ's error is larger than that of rounding, on the damped Hessian."""


def _quantize_rows(
    weight: Tensor, hessian: Tensor, grid: WeightGrid, factor: Factor, options: AlgorithmOptions
) -> _Rows:
    """Quantize rows float32 [n, K]."""
    if bool(factor.dead.any()):
        weight = weight.masked_fill(factor.dead, 0.0)  # the inputs of these columns are always 0
    codes, chosen, damped = _solve_ranges(weight, grid, factor, options)
    if options.descent:
        codes, damped = descend(weight, hessian, factor.added, chosen, codes, options.descent)
    undamped = (damped - added_error(weight - chosen.decode(codes), factor.added)).clamp_(min=0)
    nearest = grid.encode(weight)
    error = weight - grid.decode(nearest)
    rounding = output_errors(error, hessian)
    worse = ~(damped <= rounding + added_error(error, factor.added))  # NaN counts as worse
    scale = chosen.scale if isinstance(chosen, Grid) else None
    if options.guard:
        codes[worse] = nearest[worse]
        undamped = torch.where(worse, rounding, undamped)
        if isinstance(grid, Grid) and scale is not None:
            scale = torch.where(worse[:, None], grid.scale, scale)
    return _Rows(codes, scale, undamped, rounding, output_errors(weight, hessian), worse)


def quantize_together(
    weights: Sequence[Tensor], hessian: Tensor | None, scheme: QuantScheme, options: AlgorithmOptions
) -> list[Quantized]:
    """GPTQ for weights float [N_i, K] that read the same activations with Hessian float32/64 [K, K].

    Falls back to rounding, with the reason in `stats`, when the Hessian cannot be factored.
    """
    if hessian is None:
        raise InputError("gptq: needs a calibration; run dfq calibrate, or set `algorithm` to rtn", field="algorithm")
    if any(weight.shape[1] != hessian.shape[0] for weight in weights) or hessian.shape[0] != hessian.shape[1]:
        shapes = ", ".join(str(list(weight.shape)) for weight in weights)
        raise InputError(f"gptq: Hessian {list(hessian.shape)} does not fit weights {shapes}; wrong calibration?")
    factored = factor(hessian, options)
    if isinstance(factored, str):
        return rtn.fallback(weights, scheme, options, factored)
    stacked = torch.cat([weight.float() for weight in weights])
    grid = rtn.grid_for(stacked, scheme, options)
    hessian = hessian.float()
    tiles: list[_Rows] = []
    begin = 0
    for tile in row_tiles(stacked):
        tile_grid = grid.rows(begin, begin + len(tile))
        tile_rows = _quantize_rows(tile, hessian, tile_grid, factored, options)
        if options.fit_scales:
            assert isinstance(tile_grid, Grid)  # tables are integers
            assert tile_rows.scale is not None
            tile_grid = replace(tile_grid, scale=tile_rows.scale)
            scale, error = fitted_scales(tile, hessian, factored.added, tile_grid, tile_rows.codes, tile_rows.error)
            tile_rows = tile_rows._replace(scale=scale, error=error)
        tiles.append(tile_rows)
        begin += len(tile)
    rows = _Rows(*(None if values[0] is None else torch.cat(values) for values in zip(*tiles)))  # type: ignore[arg-type]
    if isinstance(grid, Grid) and rows.scale is not None:
        grid = replace(grid, scale=rows.scale)
    results, begin = [], 0
    for weight in weights:
        part = slice(begin, begin + len(weight))
        begin += len(weight)
        part_grid = grid.rows(part.start, part.stop)
        stats = _stats(rows, part, factored)
        stats["weight_error"] = weight_error(stacked[part], part_grid.decode(rows.codes[part]))
        if options.guard:
            stats["rounded_rows"] = int(rows.worse[part].sum())
        results.append(Quantized(rows.codes[part], part_grid, stats))
    return results


def _stats(rows: _Rows, part: slice, factored: Factor) -> dict[str, Any]:
    """What is reported of the weight whose rows are `part`."""
    energy = float(rows.energy[part].sum())
    return {
        "algorithm": "gptq",
        "damping": factored.damping,
        "dead": int(factored.dead.sum()),
        "output_error": fraction(float(rows.error[part].sum()), energy),
        "output_error_rtn": fraction(float(rows.rounding[part].sum()), energy),
    }


def quantize(
    weight: Tensor, hessian: Tensor | None, scheme: QuantScheme, options: AlgorithmOptions | None = None
) -> Quantized:
    """`quantize_together` for one weight."""
    return quantize_together([weight], hessian, scheme, options or AlgorithmOptions())[0]
