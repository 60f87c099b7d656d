"""Coordinate descent behind GPTQ, and GPTQ's choice of ranges: what they promise of the error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dfrot.quant.rounding import gptq
from dfrot.quant.rounding.descent import damped_errors, descend
from dfrot.quant.rounding.grid import WeightGrid, fit
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.rounding.rtn import grid_for
from dfrot.quant.scheme import QuantScheme

GRIDS = {"w4a16": (4, True), "w3a16-wasym": (3, False)}  # bits, symmetric
SCHEMES = ["w4a16", "w3a16-wasym", "w2a16-g8-wasym", "nvfp4a16", "mxfp4a16"]
ADDED = 0.05


def problem(rows: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of correlated activations."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6 * size, size, generator=generator) @ torch.randn(size, size, generator=generator)
    return torch.randn(rows, size, generator=generator), 2 / len(x) * x.T @ x / size


def errors(weight: Tensor, hessian: Tensor, grid: WeightGrid, codes: Tensor) -> Tensor:
    return damped_errors(weight - grid.decode(codes), hessian, ADDED)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [32, 160])  # 160 crosses a block border
def test_no_single_code_can_be_improved(scheme: str, size: int) -> None:
    weight, hessian = problem(7, size)
    grid = grid_for(weight, QuantScheme.parse(scheme), AlgorithmOptions())
    start = grid.encode(weight)
    codes, _ = descend(weight, hessian, ADDED, grid, start, passes=50)
    reached = errors(weight, hessian, grid, codes)
    assert bool((reached <= errors(weight, hessian, grid, start)).all())
    assert float(reached.sum()) < 0.7 * float(errors(weight, hessian, grid, start).sum())
    top = 2 ** QuantScheme.parse(scheme).w_bits - 1
    for column in (0, size // 2, size - 1):
        for code in range(top + 1):
            other = codes.clone()
            other[:, column] = code
            assert bool((errors(weight, hessian, grid, other) >= reached * (1 - 1e-5)).all())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_passes_are_never_worse_and_none_changes_nothing(scheme: str) -> None:
    weight, hessian = problem(9, 64, seed=2)
    parsed, results = QuantScheme.parse(scheme), []
    for passes in (0, 1, 2, 8):
        options = AlgorithmOptions(descent=passes)
        results.append(gptq.quantize(weight, hessian, parsed, options).stats["output_error"])
    damping = 1.01  # the damped error falls; the plain one nearly always
    assert results[1] <= results[0] * damping
    assert results[3] < results[0]
    grid = grid_for(weight, parsed, AlgorithmOptions())
    start = grid.encode(weight)
    assert torch.equal(descend(weight, hessian, ADDED, grid, start, passes=0)[0], start)


def test_a_row_that_is_best_already_stays() -> None:
    weight, _ = problem(6, 40)
    grid = grid_for(weight, QuantScheme.parse("w4a16"), AlgorithmOptions())
    start = grid.encode(weight)
    assert torch.equal(descend(weight, torch.eye(40), ADDED, grid, start, passes=3)[0], start)


@pytest.mark.parametrize("scheme", GRIDS)
def test_ranges_are_chosen_by_gptq_s_own_error(scheme: str) -> None:
    weight, hessian = problem(40, 64, seed=1)
    parsed, options = QuantScheme.parse(scheme), AlgorithmOptions(descent=1, search_scales=False, fit_scales=False)
    chosen = gptq.quantize(weight, hessian, parsed, options)
    grid = grid_for(weight, parsed, options)
    assert not torch.equal(chosen.packed().scale, fit(weight, *GRIDS[scheme]).scale)
    factor = gptq.factor(hessian, options)
    assert not isinstance(factor, str)
    codes, _, _ = gptq.solve(weight, grid, factor)
    codes, _ = descend(weight, hessian, factor.added, grid, codes, passes=1)
    before = damped_errors(weight - grid.decode(codes), hessian, factor.added)
    after = damped_errors(weight - chosen.dequantize(), hessian, factor.added)
    assert float(after.sum()) < 0.98 * float(before.sum())
    for plain in (replace(options, mse_clip=False), replace(options, descent=0)):
        kept = gptq.quantize(weight, hessian, parsed, plain)
        assert torch.equal(kept.packed().scale, grid_for(weight, parsed, plain).scale)  # type: ignore[attr-defined]
