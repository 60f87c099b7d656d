"""Cholesky factors in panels of rows, compared with torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot.quant.rounding import gptq, row_panels
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme

ACTUAL_WIDTH = row_panels.WIDTH
SIZES = [1, 5, 16, 33, 48, 75]  # with panels of 16: one, a whole number of them, and a short first one


def definite(size: int) -> Tensor:
    x = torch.randn(2 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return x.T @ x / size + 0.01 * torch.eye(size, dtype=torch.float64)


def panels_of(matrix: Tensor) -> list[Tensor]:
    return [matrix[rows, : rows.stop].clone() for rows in row_panels.panel_slices(len(matrix))]


def joined(panels: list[Tensor]) -> Tensor:
    return torch.cat([torch.nn.functional.pad(panel, (0, panels[-1].shape[1] - panel.shape[1])) for panel in panels])


@pytest.fixture(autouse=True)
def narrow_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_panels, "WIDTH", 16)
    monkeypatch.setattr(row_panels, "INVERTED", 6)


@pytest.mark.parametrize("size", SIZES)
def test_panels_cover_a_matrix(size: int) -> None:
    slices = row_panels.panel_slices(size)
    assert [part.start for part in slices] == [0, *(part.stop for part in slices[:-1])]
    assert slices[-1].stop == size
    assert all(part.stop - part.start == 16 for part in slices[1:])
    assert 0 < slices[0].stop <= 16
    assert ACTUAL_WIDTH % gptq.BLOCK == 0


@pytest.mark.parametrize("size", SIZES)
def test_factor_inverse_and_solution_are_those_of_torch(size: int) -> None:
    matrix = definite(size)
    panels = panels_of(matrix)
    assert row_panels.factor_in_place(panels)
    lower = torch.linalg.cholesky(matrix)
    torch.testing.assert_close(joined(panels), lower)
    rows = torch.randn(21, size, dtype=torch.float64)
    divided = row_panels.divide_in_place(rows.clone(), panels)
    torch.testing.assert_close(divided, torch.linalg.solve(matrix, rows.T).T)
    row_panels.invert_in_place(panels)
    torch.testing.assert_close(joined(panels), torch.linalg.inv(lower).tril())


@pytest.mark.parametrize("at", [0, 20, 39])
def test_what_is_not_positive_definite_is_noticed(at: int) -> None:
    matrix = definite(40)
    matrix[at, at] = -1.0
    assert not row_panels.factor_in_place(panels_of(matrix))
    matrix[at, at] = torch.nan
    assert not row_panels.factor_in_place(panels_of(matrix))


def test_one_panel_has_the_bytes_of_lapack() -> None:
    matrix = definite(16)
    panels = panels_of(matrix)
    assert row_panels.factor_in_place(panels)
    lower = torch.linalg.cholesky(matrix)
    assert torch.equal(panels[0], lower)
    rows = torch.randn(5, 16, dtype=torch.float64)
    assert torch.equal(row_panels.divide_in_place(rows.clone(), panels), torch.cholesky_solve(rows.T, lower).T)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [300, 512])
def test_gptq_of_several_panels_is_that_of_one(monkeypatch: pytest.MonkeyPatch, size: int, act_order: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, size, generator=generator)
    hessian, options = definite(size).float(), AlgorithmOptions(act_order=act_order)
    codes = []
    for width in (128, 1024):
        monkeypatch.setattr(row_panels, "WIDTH", width)
        codes.append(gptq.quantize(weight, hessian, QuantScheme(w_bits=4), options).codes)
    assert float((codes[0] == codes[1]).all(1).float().mean()) > 0.9  # a tie may fall either way
