"""Scales of groups that GPTQ searches: the best of every proposal by a loop over plain numbers, and less error in the
end than scales that are chosen beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dfrot.quant.rounding import gptq
from dfrot.quant.rounding.grid import RATIOS, Grid
from dfrot.quant.rounding.group_search import searched
from dfrot.quant.rounding.options import FOUR_OVER_SIX, MAX, AlgorithmOptions
from dfrot.quant.rounding.rtn import grid_for
from dfrot.quant.scheme import QuantScheme

STATIC = AlgorithmOptions(search_scales=False, fit_scales=False)
SEARCHED = AlgorithmOptions(fit_scales=False)
GROUPS = ["w4a16-g16", "w4a16-g16-wasym", "w3a16-g32", "nvfp4", "mxfp4"]


def problem(n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of activations of which some are far louder than others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * k, k, generator=generator) @ torch.randn(k, k, generator=generator) / k**0.5
    x *= torch.rand(k, generator=generator).square() * 3
    return torch.randn(n, k, generator=generator), x.T @ x / len(x)


def group_loss(columns: Tensor, corner: Tensor, grid: Grid) -> Tensor:
    """What rounding columns float64 [n, N] on a grid of one group adds to each row's loss: float64 [N]."""
    remaining, loss = columns.double().clone(), torch.zeros(columns.shape[1], dtype=torch.float64)
    for i in range(len(remaining)):
        rounded = grid.round(remaining[i].float()[:, None])[:, 0].double()
        error = (remaining[i] - rounded) / corner[i, i].double()
        loss += error.square()
        remaining[i + 1 :] -= corner[i + 1 :, i, None].double() * error
    return loss


@pytest.mark.parametrize("scheme", GROUPS)
def test_the_best_proposal_of_every_row_is_taken(scheme: str) -> None:
    parsed = QuantScheme.parse(scheme)
    weight, hessian = problem(24, 64)
    size = parsed.w_group
    grid = grid_for(weight, parsed, STATIC)
    columns = (weight[:, size : 2 * size] + 0.3).T.contiguous()  # not what the grid was made for
    corner = torch.linalg.cholesky(torch.linalg.inv(hessian.double())).float()[:size, :size]  # lower: U transposed
    proposals = grid.proposals(1, columns, signed=True)
    losses = torch.stack(
        [group_loss(columns, corner, proposals.rows(begin, begin + 24)) for begin in range(0, len(proposals.scale), 24)]
    )
    chosen = searched(grid, 1, columns, corner, signed=True)
    loss = group_loss(columns, corner, chosen)
    assert bool((loss <= losses.amin(0) * 1.001).all())
    assert float(loss.sum()) < 0.98 * float(losses[0].sum())  # those of the scales that were fixed beforehand
    if isinstance(grid, Grid):
        assert len(losses) == 1 + len(RATIOS)


@pytest.mark.parametrize("scheme", [scheme for scheme in GROUPS if scheme != "mxfp4"])
@pytest.mark.parametrize("k", [160, 192])  # the last block of 128 columns is short
def test_the_error_of_the_output_is_smaller(scheme: str, k: int) -> None:
    parsed = QuantScheme.parse(scheme)
    weight, hessian = problem(40, k, seed=3)
    static, found = (gptq.quantize(weight, hessian, parsed, options) for options in (STATIC, SEARCHED))
    assert static.stats["output_error_rtn"] == found.stats["output_error_rtn"]
    assert found.stats["output_error"] < 0.97 * static.stats["output_error"]
    error = weight - found.dequantize()
    share = float(((error @ hessian) * error).sum() / ((weight @ hessian) * weight).sum())
    assert found.stats["output_error"] == pytest.approx(share, rel=1e-3)  # codes and scales belong together


def test_a_short_last_group_has_scales_of_its_own() -> None:
    weight, hessian = problem(16, 72, seed=1)
    result = gptq.quantize(weight, hessian, QuantScheme.parse("w4a16-g32"), SEARCHED)
    assert result.packed().scale.shape == (16, 3)
    error = weight - result.dequantize()
    share = float(((error @ hessian) * error).sum() / ((weight @ hessian) * weight).sum())
    assert result.stats["output_error"] == pytest.approx(share, rel=1e-3)


def test_positive_scales_stay_positive_where_they_are_asked_for() -> None:
    weight, hessian = problem(32, 64)
    options = replace(SEARCHED, signed_scales=False)
    assert bool((gptq.quantize(weight, hessian, QuantScheme.parse("w4a16-g16"), options).packed().scale > 0).all())
    assert bool((gptq.quantize(weight, hessian, QuantScheme.parse("w4a16-g16"), SEARCHED).packed().scale < 0).any())


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("w4a16-g48", SEARCHED),  # lies across two blocks
        ("w8a16-g32", SEARCHED),
        ("w4a16", SEARCHED),
        ("mxfp4", SEARCHED),
        ("nvfp4", replace(SEARCHED, group_scales=MAX)),
        ("nvfp4", replace(SEARCHED, group_scales=FOUR_OVER_SIX)),
    ],
)
def test_what_is_not_searched_keeps_its_scales(scheme: str, options: AlgorithmOptions) -> None:
    parsed = QuantScheme.parse(scheme)
    weight, hessian = problem(24, 192)
    expected = grid_for(weight, parsed, options).scale
    found = gptq.quantize(weight, hessian, parsed, options).grid.scale
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
