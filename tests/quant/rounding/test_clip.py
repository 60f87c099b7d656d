from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot.quant.rounding import clip
from dfrot.quant.rounding.grid import Grid, fit, grouped


def _cost(weight: Tensor, grid: Grid) -> Tensor:
    error = (grid.round(weight) - weight).abs().double().pow(2.4)
    return grouped(error, grid.group).sum(1).reshape(weight.shape[0], -1)


def _exhaustive(weight: Tensor, bits: int, symmetric: bool, group: int, signed: bool) -> Tensor:
    """The smallest cost over all 80 ratios, without any pruning, in float64."""
    shape = fit(weight, bits, symmetric, group).scale.shape
    ratios = (torch.full(shape, 1 - i / 100) for i in range(80))
    costs = [_cost(weight, fit(weight, bits, symmetric, group, ratio, signed)) for ratio in ratios]
    return torch.stack(costs).min(0).values


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("symmetric", "signed"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize(("k", "group"), [(40, 0), (100, 32), (600, 0)])
def test_pruned_search_finds_the_best_of_all_ratios(
    bits: int, symmetric: bool, signed: bool, k: int, group: int
) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(6, k, generator=generator)
    weight[0, 3] = 9.0  # an outlier
    weight[1] = weight[1].abs()  # one-sided
    weight[2] *= 1e-12  # to the 2.4 this is below float32
    weight[3] = weight[3].sign()
    ratio = clip.search(weight, bits, symmetric, group, signed)
    cost = _cost(weight, fit(weight, bits, symmetric, group, ratio, signed))
    torch.testing.assert_close(cost, _exhaustive(weight, bits, symmetric, group, signed), rtol=1e-4, atol=0)


def test_zero_rows_and_values_on_the_grid_are_not_clipped() -> None:
    weight = torch.stack([torch.zeros(15), torch.arange(-7, 8).float()])
    assert clip.search(weight, 4, True).tolist() == [[1.0], [1.0]]


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    full = clip.search(weight, 4, True)
    monkeypatch.setattr(clip, "CHUNK", 100)
    assert torch.equal(clip.search(weight, 4, True), full)
