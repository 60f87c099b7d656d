"""Qronos (arXiv 2505.11695) rounds a column, then solves all later ones by least squares against the unquantized
model's outputs. That is what GPTQ does to a weight that takes its input error back in full (`--compensate 1`), so
dfq has no algorithm of that name."""

from __future__ import annotations

import pytest
import torch

from dfrot.quant.rounding import gptq, rtn
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme
from dfrot.ranks.single import SINGLE
from dfrot.stages.quantize import compensate
from dfrot.stages.quantize.compensate import SharedMoments, TapInput


def test_gptq_on_fully_compensated_weights_is_qronos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensate, "DAMPING", 1e-9)
    torch.manual_seed(0)
    exact = torch.randn(300, 20) @ torch.randn(20, 20)
    quantized = exact + 0.5 * torch.randn(300, 20)
    weight = torch.randn(16, 20)
    moments = SharedMoments(SINGLE, {"tap": 0}, {"tap": [weight]})
    moments.add("tap", TapInput(quantized, None), TapInput(exact, None))
    hessian = 2 / 300 * quantized.T @ quantized
    found = moments.take("tap")
    assert found is not None
    (full,) = found.compensated([weight], hessian, 1.0)
    options = AlgorithmOptions(mse_clip=False, act_order=False, damping=1e-9, guard=False)
    grid = rtn.grid_for(full, QuantScheme(w_bits=4), options)
    factor = gptq.factor(hessian, options)
    assert isinstance(factor, gptq.Factor)
    ours, _, _ = gptq.solve(full, grid, factor)

    x, target = quantized.double(), exact.double() @ weight.double().T  # what the outputs should be
    codes = torch.zeros_like(ours)
    current = torch.linalg.lstsq(x, target).solution.T
    assert not torch.allclose(current, weight.double(), atol=0.01)
    for column in range(20):
        codes[:, column] = grid.encode(current.float())[:, column]
        current[:, column] = grid.decode(codes)[:, column].double()
        settled, later = x[:, : column + 1], x[:, column + 1 :]
        missing = target - settled @ current[:, : column + 1].T
        if column < 19:
            current[:, column + 1 :] = torch.linalg.lstsq(later, missing).solution.T
    # a value halfway between two codes may fall either way
    assert int((ours == codes).all(1).sum()) >= 15
