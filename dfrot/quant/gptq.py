"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, let later columns make up for the error.

Minimises `tr(E H E^T)`, E = W - Q(W), over codes on a grid that is fixed beforehand from the original rows (also
per group: "static groups", so column order never changes which scale a weight uses). With H = R R^T, R upper
triangular, U = R^-1 is the upper Cholesky factor of H^-1 and holds every update of the algorithm: one Cholesky
of the flipped matrix and one triangular inverse, in float64, instead of two Choleskys and an inverse.

The loss comes for free: the squares of the scaled errors add up to `e (H + damping) e^T` for each row.
Rows are independent, so linears that read the same activations are worked on as one tall matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.quant import rtn
from dfrot.quant.grid import Grid, Quantized
from dfrot.quant.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme

BLOCK = 128
RETRIES = (1, 2, 5, 10, 25, 50, 100)  # multiples of the damping, up to the whole mean diagonal


@dataclass(frozen=True)
class Factor:
    """upper: U float32 [K, K] with H^-1 = U^T U in `order`; added: what was added to the diagonal."""

    upper: Tensor
    order: Tensor
    dead: Tensor
    damping: float
    added: float


def factor(hessian: Tensor, options: AlgorithmOptions) -> Factor | str:
    """Damp and factor a Hessian [K, K]; more damping is tried when it is not positive definite.

    Returns the reason as text when no damping helps (the caller rounds to nearest and says so)."""
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


def solve(weight: Tensor, grid: Grid, factor: Factor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [N, K] for weight float32 [N, K], and each row's damped loss float64 [N].

    Columns lie as rows of a [K, N] matrix, so that every step works on contiguous vectors of length N. Inside a
    block the feedback is gathered from the left (one matrix-vector product per column), beyond it by one GEMM.
    """
    n, k = weight.shape
    top = 2**grid.bits - 1
    left = weight.T[factor.order].contiguous()
    steps, zeros = grid.steps(factor.order).T, grid.zeros(factor.order)
    codes = torch.empty(k, n, dtype=torch.uint8)
    loss = torch.zeros(n, dtype=torch.float64)
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        corner = factor.upper[begin:end, begin:end].T.contiguous()
        pivots = corner.diagonal().tolist()
        errors = torch.empty(end - begin, n)
        step = steps[begin:end].contiguous()
        zero = zeros if isinstance(zeros, float) else zeros.T[begin:end].contiguous()
        for i, pivot in enumerate(pivots):
            column = left[begin + i]
            if i:
                column = torch.addmv(column, errors[:i].T, corner[i, :i], alpha=-1)
            offset = zero if isinstance(zero, float) else zero[i]
            code = torch.div(column, step[i]).round_().add_(offset).clamp_(0, top)
            codes[begin + i] = code
            torch.sub(column, code.sub_(offset).mul_(step[i]), out=errors[i]).div_(pivot)
        loss += errors.square().sum(0, dtype=torch.float64)
        if end < k:
            left[end:].addmm_(factor.upper[begin:end, end:].T, errors, alpha=-1)
    restored = torch.empty_like(codes)
    restored[factor.order] = codes
    return restored.T.contiguous(), loss


def _tile(
    weight: Tensor, hessian: Tensor, grid: Grid, factor: Factor, guard: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Codes, and per row float64: error, error of rounding, energy, whether rounding was kept."""
    if bool(factor.dead.any()):
        weight = weight.masked_fill(factor.dead, 0.0)  # nothing ever enters there
    codes, damped = solve(weight, grid, factor)
    error = weight - grid.decode(codes)
    plain = (damped - factor.added * error.square().sum(1, dtype=torch.float64)).clamp_(min=0)
    nearest = grid.encode(weight)
    error = weight - grid.decode(nearest)
    rounding = rtn.quadratic(error, hessian)
    worse = ~(damped <= rounding + factor.added * error.square().sum(1, dtype=torch.float64))  # NaN counts as worse
    if guard:
        codes[worse] = nearest[worse]
        plain = torch.where(worse, rounding, plain)
    return codes, plain, rounding, rtn.quadratic(weight, hessian), worse


def quantize_together(
    weights: Sequence[Tensor], hessian: Tensor | None, scheme: QuantScheme, options: AlgorithmOptions
) -> list[Quantized]:
    """GPTQ for weights float [N_i, K] that read the same activations with Hessian float32/64 [K, K].

    Falls back to rounding, with the reason in `stats`, when the Hessian cannot be factored.
    """
    if hessian is None:
        raise InputError("gptq: needs a calibration; run dfq calibrate, or use --algorithm rtn")
    if any(weight.shape[1] != hessian.shape[0] for weight in weights) or hessian.shape[0] != hessian.shape[1]:
        shapes = ", ".join(str(list(weight.shape)) for weight in weights)
        raise InputError(f"gptq: Hessian {list(hessian.shape)} does not fit weights {shapes}; wrong calibration?")
    factored = factor(hessian, options)
    if isinstance(factored, str):
        return rtn.fallback(weights, scheme, options, factored)
    tall = torch.cat([weight.float() for weight in weights])
    grid = rtn.grid_for(tall, scheme, options)
    hessian = hessian.float()
    columns: list[list[Tensor]] = [[], [], [], [], []]
    begin = 0
    for tile in rtn.row_tiles(tall):
        rows = grid.rows(begin, begin + len(tile))
        for column, value in zip(columns, _tile(tile, hessian, rows, factored, options.guard)):
            column.append(value)
        begin += len(tile)
    codes, error, rounding, energy, worse = (torch.cat(column) for column in columns)
    results, begin = [], 0
    for weight in weights:
        part = slice(begin, begin + len(weight))
        begin += len(weight)
        rows = grid.rows(part.start, part.stop)
        whole = float(energy[part].sum())
        stats: dict[str, Any] = {
            "algorithm": "gptq",
            "damping": factored.damping,
            "dead": int(factored.dead.sum()),
            "output_error": rtn.ratio(float(error[part].sum()), whole),
            "output_error_rtn": rtn.ratio(float(rounding[part].sum()), whole),
            "weight_error": rtn.measure(tall[part], rows.decode(codes[part])),
        }
        if options.guard:
            stats["rounded_rows"] = int(worse[part].sum())
        results.append(Quantized(codes[part], rows, stats))
    return results


def quantize(
    weight: Tensor, hessian: Tensor | None, scheme: QuantScheme, options: AlgorithmOptions | None = None
) -> Quantized:
    """`quantize_together` for one weight."""
    return quantize_together([weight], hessian, scheme, options or AlgorithmOptions())[0]
