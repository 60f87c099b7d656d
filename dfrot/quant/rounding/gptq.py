"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, and let later columns compensate the error.

Minimises `tr(E H E^T)`, E = W - Q(W), over codes on a grid that is fixed beforehand from the original rows, except for
the scales of groups, which are searched when their columns are reached (group_search.py). With H = R R^T, R upper
triangular, U = R^-1 is the upper Cholesky factor of H^-1 and holds every update of the algorithm: one Cholesky
of the flipped matrix and one triangular inverse, in float64, instead of two Choleskys and an inverse.

The loss comes for free: the squares of the scaled errors add up to `e (H + damping) e^T` for each row.
Rows are independent, so linears that read the same activations are quantized as one tall matrix, in tiles of rows that
ranks can share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.quant.rounding import rtn
from dfrot.quant.rounding.descent import descend
from dfrot.quant.rounding.grid import Grid, Quantized, WeightGrid
from dfrot.quant.rounding.group_search import round_columns, searched
from dfrot.quant.rounding.hessian_error import added_error, finite, output_errors, squares
from dfrot.quant.rounding.options import MSE, AlgorithmOptions
from dfrot.quant.rounding.quantized_rows import QuantizedRows, row_slices
from dfrot.quant.rounding.row_panels import factor_in_place, invert_in_place, panel_slices
from dfrot.quant.rounding.scale_fit import fitted_scales
from dfrot.quant.scheme import INTEGERS, NARROW, NVFP4, QuantScheme
from dfrot.ranks.single import SINGLE, Ranks

BLOCK = 128  # columns between two updates of everything to the right, as in the paper
RANGES = (0.85, 0.9, 0.95)  # of a row, in multiples of that of the clip search; wider ones win in 6 % of all rows
RETRIES = (1, 2, 5, 10, 25, 50, 100)  # multiples of the damping, up to the whole mean diagonal


@dataclass(frozen=True)
class Factor:
    """A factored Hessian [K, K]."""

    upper: Sequence[Tensor]
    """U [K, K] with H^-1 = U^T U, rows and columns in `order`: panels of its rows, one below the other, float32
    [n, K - first row]; what is left of them is 0."""
    order: Tensor
    """int64 [K]: the columns in the order in which they are rounded."""
    dead: Tensor
    """bool [K]: columns that no calibration token activates."""
    damping: float
    """What was added to the diagonal, as a share of its mean."""
    added: float
    """What was added to the diagonal."""


def factor(hessian: Tensor, options: AlgorithmOptions, group: int = 1) -> Factor | str:
    """Damp and factor a Hessian [K, K]; more damping is tried when it is not positive definite.

    group: columns that stay together with `act_order`, because their scale is searched.
    Returns the reason as text when no damping helps; the caller then rounds to nearest and reports it."""
    if not finite(hessian):
        return "the Hessian holds NaN or Inf"
    size = hessian.shape[0]
    diagonal = hessian.diagonal().double()
    dead = diagonal <= 0
    if bool(dead.all()):
        return "no input channel is ever active"
    mean = float(diagonal[~dead].mean())
    order = _by_energy(diagonal, group) if options.act_order else torch.arange(size)
    reverse = order.flip(0)
    for multiple in RETRIES:
        damping = min(options.damping * multiple, 1.0)
        damped = (torch.where(dead, 1.0, diagonal) + damping * mean)[reverse]
        panels = _flipped(hessian, reverse, damped)
        if factor_in_place(panels):
            invert_in_place(panels)
            upper = []
            while panels:  # each gives its memory back
                upper.append(panels.pop().float().flip(0, 1))
            if all(map(finite, upper)):
                return Factor(upper, order, dead, damping, damping * mean)
            return f"the factor of the Hessian overflows float32 at damping {damping:g}"
        if damping >= 1.0:
            break
    return f"the Hessian is not positive definite even with damping {damping:g}"


def _by_energy(diagonal: Tensor, group: int) -> Tensor:
    """The columns int64 [K] in the order of falling energies `diagonal` [K]: groups by their sums, a short last one at
    the end, and the columns of each."""
    whole = diagonal[: len(diagonal) // group * group].view(-1, group)
    columns = torch.argsort(whole, dim=1, descending=True, stable=True)
    groups = torch.argsort(whole.sum(1), descending=True, stable=True)
    rest = torch.argsort(diagonal[whole.numel() :], descending=True, stable=True) + whole.numel()
    return torch.cat([(columns + group * torch.arange(len(whole))[:, None])[groups].flatten(), rest])


def _flipped(hessian: Tensor, reverse: Tensor, diagonal: Tensor) -> list[Tensor]:
    """A Hessian with rows and columns in the order `reverse` and another diagonal, as panels (row_panels.py)."""
    panels = []
    for rows in panel_slices(len(hessian)):
        panel = hessian[reverse[rows, None], reverse[None, : rows.stop]].double()
        panel[:, rows.start :].diagonal().copy_(diagonal[rows])
        panels.append(panel)
    return panels


def searched_group(scheme: QuantScheme, options: AlgorithmOptions, size: int) -> int:
    """How many columns share a scale that is searched, in rows of `size` columns; 0: none is.

    Groups must lie whole in a block of columns. Powers of two (MXFP4) leave so little to choose that the order of
    single columns is worth more."""
    group = scheme.w_group
    if not options.search_scales or scheme.w_bits > NARROW or not 0 < group < size or BLOCK % group:
        return 0
    kind = scheme.number_format
    return group if kind == INTEGERS or (kind == NVFP4 and options.group_scales == MSE) else 0


def fits_scales(scheme: QuantScheme, options: AlgorithmOptions, size: int) -> bool:
    """Whether the scales of rows of `size` columns are fitted once their codes stand: integers, several to a row."""
    narrow = scheme.number_format == INTEGERS and scheme.w_bits <= NARROW
    return options.fit_scales and narrow and 0 < scheme.w_group < size


def solve(
    weight: Tensor, grid: WeightGrid, factor: Factor, group: int = 0, signed: bool = True
) -> tuple[Tensor, WeightGrid, Tensor]:
    """Codes uint8 [N, K] for weight float32 [N, K], their grid, and each row's damped loss float64 [N].

    group: columns of a scale that is searched, which lie together in the factor's order; 0: the grid is the one that is
    given. signed: as for `WeightGrid.proposals`.

    Columns lie as rows of a [K, N] matrix, so that every step works on contiguous vectors of length N. Inside a
    block the feedback is gathered from the left, beyond it by one GEMM.
    """
    n, k = weight.shape
    remaining = weight.T[factor.order].contiguous()
    codes = torch.empty(k, n, dtype=torch.uint8)
    loss = torch.zeros(n, dtype=torch.float64)
    groups: dict[int, WeightGrid] = {}
    panels, first = iter(factor.upper), 0
    panel = next(panels)
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        if begin == first + len(panel):
            first, panel = begin, next(panels)
        rows = panel[begin - first : end - first, begin - first :]
        corner = rows[:, : end - begin].T.contiguous()
        block, errors = remaining[begin:end], torch.empty(end - begin, n)
        for at in range(0, end - begin, group or BLOCK):
            part = slice(at, min(at + (group or BLOCK), end - begin))
            columns = torch.addmm(block[part], corner[part, :at], errors[:at], alpha=-1) if at else block[part]
            if group:
                index = int(factor.order[begin + at]) // group
                groups[index] = searched(grid, index, columns, corner[part, part], signed)
                rounding = groups[index].columns(torch.arange(len(columns)))
            else:
                rounding = grid.columns(factor.order[begin:end])
            codes[begin:end][part], errors[part] = round_columns(columns, corner[part, part], rounding)
        loss += errors.square().sum(0, dtype=torch.float64)
        if end < k:
            remaining[end:].addmm_(rows[:, end - begin :].T, errors, alpha=-1)
    restored = torch.empty_like(codes)
    restored[factor.order] = codes
    if groups:
        first_group, *others = (groups[index] for index in sorted(groups))
        grid = first_group.beside(others)
    return restored.T.contiguous(), grid, loss


def _solve_ranges(
    weight: Tensor, grid: WeightGrid, factor: Factor, options: AlgorithmOptions, group: int
) -> tuple[Tensor, WeightGrid, Tensor]:
    """Codes uint8 [N, K], their grid and damped loss float64 [N]: with `descent`, where a row has one scale, those of
    the range with the least loss. The clip search that made `grid` judged by rounding to nearest, for which wider
    ranges are best."""
    codes, grid, loss = solve(weight, grid, factor, group, options.signed_scales)
    if not isinstance(grid, Grid) or grid.scale.shape[1] > 1 or not (options.mse_clip and options.descent):
        return codes, grid, loss
    scale = grid.scale
    for ratio in RANGES:
        other = replace(grid, scale=(grid.scale.float() * ratio).bfloat16())
        other_codes, _, other_loss = solve(weight, other, factor)
        better = other_loss < loss
        codes = torch.where(better[:, None], other_codes, codes)
        scale = torch.where(better[:, None], other.scale, scale)
        loss = torch.where(better, other_loss, loss)
    return codes, replace(grid, scale=scale), loss


def _quantize_rows(
    weight: Tensor, hessian: Tensor, grid: WeightGrid, factor: Factor, scheme: QuantScheme, options: AlgorithmOptions
) -> QuantizedRows:
    """Quantize rows float32 [n, K] on a grid that was fixed beforehand, but for scales of groups that are searched or
    fitted."""
    source, group = weight, searched_group(scheme, options, weight.shape[1])
    if bool(factor.dead.any()):
        weight = weight.masked_fill(factor.dead, 0.0)  # the inputs of these columns are always 0
    codes, chosen, damped = _solve_ranges(weight, grid, factor, options, group)
    if options.descent:
        codes, damped = descend(weight, hessian, factor.added, chosen, codes, options.descent)
    undamped = (damped - added_error(weight - chosen.decode(codes), factor.added)).clamp_(min=0)
    nearest = grid.encode(weight)
    error = weight - grid.decode(nearest)
    rounding = output_errors(error, hessian)
    worse = ~(damped <= rounding + added_error(error, factor.added))  # NaN counts as worse
    if options.guard:
        codes[worse] = nearest[worse]
        undamped = torch.where(worse, rounding, undamped)
        chosen = chosen.mixed(worse, grid)
    if isinstance(chosen, Grid) and fits_scales(scheme, options, weight.shape[1]):
        scale, undamped = fitted_scales(source, hessian, factor.added, chosen, codes, undamped)
        chosen = replace(chosen, scale=scale)
    distance = squares(source - chosen.decode(codes))
    return QuantizedRows(
        codes, chosen, undamped, rounding, output_errors(weight, hessian), worse, distance, squares(source)
    )


def quantize_together(
    weights: Sequence[Tensor],
    hessian: Tensor | None,
    scheme: QuantScheme,
    options: AlgorithmOptions,
    ranks: Ranks = SINGLE,
    source: int = 0,
) -> list[Quantized]:
    """GPTQ for weights float [N_i, K] that read the same activations with Hessian float32/64 [K, K].

    ranks: share the rows; all of them must call this, and get the results. Weights and Hessian are those of rank
    `source`, which factors it; what the others give is ignored. Falls back to rounding, with the reason in `stats`,
    when the Hessian cannot be factored.
    """
    group = searched_group(scheme, options, weights[0].shape[1])
    task = ranks.broadcast(_task(weights, hessian, options, group) if ranks.rank == source else None, source)
    stacked, heights = task["rows"], task["heights"]
    if "reason" in task:
        return rtn.fallback(torch.split(stacked, heights), scheme, options, task["reason"])
    factored = Factor(**task["factor"])
    peak = stacked.abs().max() if scheme.number_format == NVFP4 else None
    own = []
    for tile in ranks.own(row_slices(*stacked.shape)):
        grid = rtn.grid_for(stacked[tile], scheme, options, peak)
        own.append(_quantize_rows(stacked[tile], task["hessian"], grid, factored, scheme, options).to_plain())
    rows = QuantizedRows.joined([QuantizedRows.from_plain(part) for part in ranks.everyones(own)])
    results, begin = [], 0
    for height in heights:
        part = slice(begin, begin + height)
        begin += height
        stats = {"algorithm": "gptq", "damping": factored.damping, "dead": int(factored.dead.sum()), **rows.stats(part)}
        if options.guard:
            stats["rounded_rows"] = int(rows.worse[part].sum())
        results.append(Quantized(rows.codes[part], rows.grid.rows(part.start, part.stop), stats))
    return results


def _task(weights: Sequence[Tensor], hessian: Tensor | None, options: AlgorithmOptions, group: int) -> dict[str, Any]:
    """What every rank must know, as a tree that travels: rows float32 [N, K] of all weights and their heights, and the
    Hessian float32 with its factor, or the reason why there is none. Raises InputError for a Hessian that is missing
    or does not fit."""
    if hessian is None:
        raise InputError("gptq: needs a calibration; run dfq calibrate, or set `algorithm` to rtn", field="algorithm")
    if any(weight.shape[1] != hessian.shape[0] for weight in weights) or hessian.shape[0] != hessian.shape[1]:
        shapes = ", ".join(str(list(weight.shape)) for weight in weights)
        raise InputError(f"gptq: Hessian {list(hessian.shape)} does not fit weights {shapes}; wrong calibration?")
    factored = factor(hessian, options, group or 1)
    stacked = torch.cat([weight.float() for weight in weights]) if len(weights) > 1 else weights[0].float()
    rows = {"rows": stacked, "heights": [len(weight) for weight in weights]}
    if isinstance(factored, str):
        return {**rows, "reason": factored}
    return {**rows, "hessian": hessian.float(), "factor": vars(factored)}


def quantize(
    weight: Tensor, hessian: Tensor | None, scheme: QuantScheme, options: AlgorithmOptions | None = None
) -> Quantized:
    """`quantize_together` for one weight."""
    return quantize_together([weight], hessian, scheme, options or AlgorithmOptions())[0]
