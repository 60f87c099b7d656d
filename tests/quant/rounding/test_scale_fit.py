"""Scales fitted to codes are those of a least-squares solver, and never worse than those of the grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot.quant.rounding import gptq, scale_fit
from dfrot.quant.rounding.grid import fit
from dfrot.quant.rounding.hessian_error import damped, output_errors
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme


def problem(n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, activations and their Hessian."""
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(4 * k, k, generator=generator) @ torch.randn(k, k, generator=generator) / k**0.5
    return torch.randn(n, k, generator=generator), x, x.T @ x / len(x)


@pytest.mark.parametrize(("k", "group"), [(24, 0), (24, 8), (28, 8)])  # the last with a short group
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_those_of_least_squares(k: int, group: int, symmetric: bool) -> None:
    weight, x, hessian = problem(6, k)
    grid = fit(weight, 4, symmetric, group)
    codes = grid.encode(weight)
    before = output_errors(weight - grid.decode(codes), hessian)
    scale, after = scale_fit.fitted_scales(weight, hessian, 0.0, grid, codes, before)
    integers = codes.float() - grid.zeros(torch.arange(k))
    for row in range(6):
        parts = [x[:, i : i + (group or k)] @ integers[row, i : i + (group or k)] for i in range(0, k, group or k)]
        expected = torch.linalg.lstsq(torch.stack(parts, 1).double(), (x @ weight[row]).double()).solution
        torch.testing.assert_close(scale[row].double(), expected, rtol=5e-3, atol=1e-4)  # bfloat16
    assert bool((after <= before).all())
    assert float(after.sum()) < 0.98 * float(before.sum())


def test_rows_and_groups_without_codes_keep_their_scale() -> None:
    weight, _, hessian = problem(3, 16)
    weight[0], weight[1, 8:] = 0.0, 0.0
    grid = fit(weight, 4, True, 8)
    codes = grid.encode(weight)
    error = output_errors(weight - grid.decode(codes), hessian)
    scale, fitted = scale_fit.fitted_scales(weight, hessian, 0.01, grid, codes, error)
    assert torch.equal(scale[0], grid.scale[0])
    assert scale[1, 1] == grid.scale[1, 1]
    assert bool(torch.isfinite(scale).all())
    assert float(fitted[0]) == 0.0


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, hessian = problem(40, 32)
    grid = fit(weight, 4, True, 8)
    codes = grid.encode(weight)
    error = output_errors(weight - grid.decode(codes), hessian)
    whole, _ = scale_fit.fitted_scales(weight, hessian, 0.01, grid, codes, error)
    monkeypatch.setattr(scale_fit, "ELEMENTS", 7 * 4 * 32)
    parts, _ = scale_fit.fitted_scales(weight, hessian, 0.01, grid, codes, error)
    torch.testing.assert_close(parts.float(), whole.float(), rtol=2.0**-7, atol=0)


def test_gptq_reports_the_error_of_the_fitted_scales() -> None:
    weight, _, hessian = problem(50, 64)
    scheme = QuantScheme(w_bits=4, w_group=16)
    plain = gptq.quantize(weight, hessian, scheme, AlgorithmOptions(fit_scales=False))
    fitted = gptq.quantize(weight, hessian, scheme, AlgorithmOptions())
    assert torch.equal(plain.codes, fitted.codes)
    assert fitted.stats["output_error"] < plain.stats["output_error"]
    error = output_errors(weight - fitted.dequantize(), hessian).sum() / output_errors(weight, hessian).sum()
    assert fitted.stats["output_error"] == pytest.approx(float(error), rel=1e-4)


def test_a_hessian_that_was_damped_in_its_place_has_its_bytes_again() -> None:
    _, _, hessian = problem(1, 24)
    before = hessian.clone()
    with damped(hessian, 0.1):
        assert torch.equal(hessian, before + 0.1 * torch.eye(24))
    assert torch.equal(hessian, before)
