"""Round to nearest: every weight to the closest point of its grid. Needs no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.quant import clip
from dfrot.quant.grid import Grid, Quantized, fit
from dfrot.quant.options import AlgorithmOptions
from dfrot.quant.scheme import FULL, QuantScheme

TILE = 1 << 25  # weight elements worked on together; float32 temporaries are a few times this


def row_tiles(weight: Tensor) -> tuple[Tensor, ...]:
    """Row blocks that bound temporaries for tall weights."""
    return torch.split(weight, max(1, TILE // max(weight.shape[1], 1)))


def grid_for(weight: Tensor, scheme: QuantScheme, options: AlgorithmOptions) -> Grid:
    """The grid of a weight float32 [N, K] under a scheme, with the clip search if asked for."""
    if scheme.w_bits == FULL:
        raise UnsupportedError(f"scheme {scheme.name} leaves weights in 16 bits; there is no grid to round to")
    ratio = clip.search(weight, scheme.w_bits, scheme.w_sym, scheme.w_group) if options.mse_clip else None
    return fit(weight, scheme.w_bits, scheme.w_sym, scheme.w_group, ratio)


def quadratic(error: Tensor, hessian: Tensor) -> Tensor:
    """e H e^T for every row of float32 [N, K]: float64 [N]. The GEMM is float32, the sums are float64."""
    return torch.cat([(part @ hessian).mul_(part).sum(1, dtype=torch.float64) for part in row_tiles(error)])


def ratio(part: float, whole: float) -> float:
    """part / whole to six digits: evidence that is stable in print. 0 for an all-zero weight."""
    return float(f"{part / whole:.6g}") if whole > 0 else 0.0


def measure(weight: Tensor, rounded: Tensor) -> float:
    """Relative squared error of the weight itself."""
    error = sum(float((a - b).square().sum(dtype=torch.float64)) for a, b in zip(row_tiles(weight), row_tiles(rounded)))
    return ratio(error, sum(float(a.square().sum(dtype=torch.float64)) for a in row_tiles(weight)))


def quantize(
    weight: Tensor, hessian: Tensor | None, scheme: QuantScheme, options: AlgorithmOptions | None = None
) -> Quantized:
    """Round one weight float [N, K]. A Hessian [K, K], if given, only serves to report the output error."""
    options = options or AlgorithmOptions()
    weight = weight.float()
    grid = grid_for(weight, scheme, options)
    codes = grid.encode(weight)
    rounded = grid.decode(codes)
    stats: dict[str, Any] = {"algorithm": "rtn", "weight_error": measure(weight, rounded)}
    if hessian is not None:
        error = float(quadratic(weight - rounded, hessian.float()).sum())
        stats["output_error"] = ratio(error, float(quadratic(weight, hessian.float()).sum()))
    return Quantized(codes, grid, stats)


def fallback(weights: Sequence[Tensor], scheme: QuantScheme, options: AlgorithmOptions, reason: str) -> list[Quantized]:
    """`quantize_together` in place of an algorithm that cannot do it, with the reason in `stats`."""
    results = quantize_together(weights, None, scheme, options)
    return [Quantized(r.codes, r.grid, {**r.stats, "fallback": reason}) for r in results]


def starved(tokens: int, columns: int) -> str | None:
    """Why an expert cannot be quantized on `tokens` of its own, or None. With fewer tokens than columns the Hessian is
    singular, and GPTQ would move its error to where no token of the calibration looked."""
    if tokens >= columns:
        return None
    return f"its expert was sent {tokens} calibration tokens, {columns} are needed (one per column)"


def quantize_together(
    weights: Sequence[Tensor], hessian: Tensor | None, scheme: QuantScheme, options: AlgorithmOptions
) -> list[Quantized]:
    """`quantize` for every weight."""
    return [quantize(weight, hessian, scheme, options) for weight in weights]
