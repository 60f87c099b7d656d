"""The unquantized model beside the quantized one, and the weights that take its activation error back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from dfrot.quant.rounding import row_panels
from dfrot.ranks.single import SINGLE
from dfrot.stages.quantize import compensate
from dfrot.stages.quantize.compensate import SharedMoments, TapInput, TapMoments


def moments(exact: Tensor | None, quantized: Tensor, weights: Sequence[Tensor]) -> TapMoments:
    total = SharedMoments(SINGLE, {"tap": 0}, {"tap": weights})
    for begin in range(0, len(quantized), 100):
        part = None if exact is None else TapInput(exact[begin : begin + 100], None)
        total.add("tap", TapInput(quantized[begin : begin + 100], None), part)
    found = total.take("tap")
    assert found is not None
    return found


@pytest.mark.parametrize("narrow", [True, False])  # narrow: 24 columns are few, or more than two panels
@pytest.mark.parametrize("rows", [8, 16, 40])  # the error through the weights, solved for rows, solved for columns
def test_the_full_step_is_the_least_squares_solution(monkeypatch: pytest.MonkeyPatch, rows: int, narrow: bool) -> None:
    if not narrow:
        monkeypatch.setattr(compensate, "WIDTH", 10)
        monkeypatch.setattr(row_panels, "WIDTH", 10)
    torch.manual_seed(0)
    exact = torch.randn(400, 24) @ torch.randn(24, 24)
    quantized = exact + 0.1 * torch.randn(400, 24)
    weight = torch.randn(rows, 24)
    hessian = 2 / 400 * quantized.double().T @ quantized.double()
    damped = hessian + compensate.DAMPING * hessian.diagonal().mean() * torch.eye(24).double()
    missing = 2 / 400 * (exact - quantized).double().T @ quantized.double()
    solution = weight + 0.5 * weight.double() @ missing @ torch.linalg.inv(damped)
    parts = list(torch.split(weight, [3, rows - 3]))
    found = moments(exact, quantized, parts)
    assert found.error is not None
    assert len(found.error) == (rows if rows == 8 and not narrow else 24)
    half = torch.cat(found.compensated(parts, hessian.float(), 0.5))
    torch.testing.assert_close(half, solution.float(), rtol=1e-4, atol=1e-4)
    assert float((half - weight).norm() / weight.norm()) > 1e-3


def test_nothing_is_taken_back_without_an_unquantized_model_or_with_damaged_activations() -> None:
    quantized, weight = torch.randn(50, 8), torch.randn(4, 8)
    assert moments(None, quantized, [weight]).compensated([weight], torch.eye(8), 1.0)[0] is weight
    damaged = moments(quantized.clone().fill_(torch.nan), quantized, [weight])
    assert damaged.compensated([weight], torch.full((8, 8), torch.nan), 1.0)[0] is weight  # GPTQ reports the Hessian


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_linears_multiply_as_the_source_model_does(
    monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, native: bool, bias: bool
) -> None:
    monkeypatch.setattr(compensate, "fast_bfloat16", lambda: native)
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=bias).requires_grad_(False)
    linear.weight.data = linear.weight.data.to(stored).float()
    x = torch.randn(3, 64)
    expected = linear(x)
    inputs: list[Tensor] = []
    compensate._multiply_in_bfloat16(linear)
    linear.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    out = linear(x)
    half = native and stored == torch.bfloat16
    assert inputs[0].dtype == (torch.bfloat16 if half else torch.float32)
    assert out.dtype == torch.float32
    assert out.equal(expected) != half
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)
