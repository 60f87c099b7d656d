"""Round to nearest: every weight to the closest point of its grid. Needs no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.quant.rounding import clip
from dfrot.quant.rounding.fp4_grid import fit_fp4
from dfrot.quant.rounding.grid import Quantized, WeightGrid, fit
from dfrot.quant.rounding.hessian_error import fraction, output_errors, weight_error
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import FULL, NARROW, NVFP4, Fp4Scheme, QuantScheme
from dfrot.ranks.single import SINGLE, Ranks


def grid_for(weight: Tensor, scheme: QuantScheme, options: AlgorithmOptions, peak: Tensor | None = None) -> WeightGrid:
    """The grid of a weight float32 [N, K] under a scheme, with the clip search if the options ask for it. peak: as for
    `fit_fp4`. Raises UnsupportedError for a scheme with 16-bit weights."""
    if isinstance(scheme, Fp4Scheme):
        return fit_fp4(weight, scheme, options.group_scales, peak)
    if scheme.w_bits == FULL:
        raise UnsupportedError(f"scheme {scheme.name} leaves weights in 16 bits; there is no grid to round to")
    shape, signed = (scheme.w_bits, scheme.w_sym, scheme.w_group), options.signed_scales and scheme.w_bits <= NARROW
    ratios = clip.search(weight, *shape, signed) if options.mse_clip else None
    return fit(weight, *shape, ratios, signed)


def quantize(
    weight: Tensor,
    hessian: Tensor | None,
    scheme: QuantScheme,
    options: AlgorithmOptions | None = None,
    peak: Tensor | None = None,
) -> Quantized:
    """Round one weight float [N, K]. A Hessian [K, K], if given, only serves to report the output error. peak: as for
    `fit_fp4`."""
    options = options or AlgorithmOptions()
    weight = weight.float()
    grid = grid_for(weight, scheme, options, peak)
    codes = grid.encode(weight)
    rounded = grid.decode(codes)
    stats: dict[str, Any] = {"algorithm": "rtn", "weight_error": weight_error(weight, rounded)}
    if hessian is not None:
        error = float(output_errors(weight - rounded, hessian.float()).sum())
        stats["output_error"] = fraction(error, float(output_errors(weight, hessian.float()).sum()))
    return Quantized(codes, grid, stats)


def quantize_together(
    weights: Sequence[Tensor],
    hessian: Tensor | None,
    scheme: QuantScheme,
    options: AlgorithmOptions,
    ranks: Ranks = SINGLE,
    source: int = 0,
) -> list[Quantized]:
    """`quantize` for every weight; those of NVFP4 share one float32 scale, as engines that fuse them need it. ranks,
    source: as an `Algorithm` is given them; every rank gets the same weights and rounds them for itself, which takes
    less time than sending them."""
    peak = (
        torch.stack([weight.float().abs().max() for weight in weights]).max() if scheme.number_format == NVFP4 else None
    )
    return [quantize(weight, hessian, scheme, options, peak) for weight in weights]


def fallback(weights: Sequence[Tensor], scheme: QuantScheme, options: AlgorithmOptions, reason: str) -> list[Quantized]:
    """`quantize_together` in place of an algorithm that cannot be used, with the reason in `stats`."""
    results = quantize_together(weights, None, scheme, options)
    return [Quantized(r.codes, r.grid, {**r.stats, "fallback": reason}) for r in results]


def starved(tokens: int, columns: int) -> str | None:
    """Why an expert that was sent `tokens` calibration tokens cannot be quantized by GPTQ, or None. With fewer tokens
    than columns its Hessian is singular, and GPTQ would move its error to directions that no token has."""
    if tokens >= columns:
        return None
    return f"its expert was sent {tokens} calibration tokens, {columns} are needed (one per column)"
