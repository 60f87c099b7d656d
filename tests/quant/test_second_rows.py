"""Second rows of a head: the linear, its twin and its trainable form compute with the sum of both rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.quant import second_rows
from dfrot.quant.modules.dense_linear import DenseLinear
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.modules.trainable_linear import TrainableLinear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rounding.rtn import quantize
from dfrot.quant.scheme import QuantScheme

ROWS, COLS = 50, 64
PLAN = LinearPlan("lm_head", ROWS, COLS, True, 4, 32, True, second_rows=3)
SECOND = torch.tensor([0, 7, 49], dtype=torch.int32)


def linear(bias: bool, dtype: torch.dtype = torch.float32, symmetric: bool = True, prepare: bool = True) -> QuantLinear:
    module = QuantLinear(replace(PLAN, w_sym=symmetric), bias, dtype)
    weight = torch.randn(ROWS + 3, COLS, generator=torch.Generator().manual_seed(0))
    packed = quantize(weight, None, QuantScheme(w_bits=4, w_group=32, w_sym=symmetric)).packed()
    state = {"weight_packed": packed.packed, "weight_scale": packed.scale, "weight_second": SECOND}
    if packed.zero is not None:
        state["weight_zero"] = packed.zero
    if bias:
        state["bias"] = torch.linspace(-2, 2, ROWS).to(dtype)
    module.load_state_dict(state)
    if prepare:
        module.prepare("lm_head")
    return module


def folded(module: QuantLinear) -> Tensor:
    """The sum, row by row."""
    weight = module.stored_weight().dequantize(torch.float32)
    for number, token in enumerate(SECOND.tolist()):
        weight[token] += weight[ROWS + number]
    return weight[:ROWS]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_outputs_are_those_of_the_sum(symmetric: bool, bias: bool, rows: int, isa: str) -> None:
    module = linear(bias, symmetric=symmetric)
    assert module.out_features == ROWS
    x = torch.randn(rows, COLS, generator=torch.Generator().manual_seed(1))
    wanted = x @ folded(module).T + (0 if module.bias is None else module.bias)
    out = module(x)
    assert out.shape == (rows, ROWS)
    assert float((out - wanted).norm()) <= 4e-3 * float(wanted.norm())  # many rows are multiplied in bfloat16
    assert float((out - wanted)[:, SECOND.long()].norm()) <= 4e-3 * float(wanted[:, SECOND.long()].norm())
    if rows <= 16:
        assert torch.equal(out[:1], module(x[:1])), "a row has the bits it has alone"


def test_the_twin_holds_the_sum_and_the_state_survives() -> None:
    module = linear(True)
    assert torch.equal(DenseLinear.twin(module).weight, folded(module))
    assert torch.equal(module.dequantized(), folded(module))
    again = QuantLinear(PLAN, True, torch.float32)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.dequantized(), module.dequantized())
    assert module.to(torch.bfloat16).weight_second.dtype == torch.int32


def test_scales_of_second_rows_learn_too() -> None:
    module = linear(True)
    trainable, x = TrainableLinear(module), torch.randn(6, COLS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(trainable(x), module(x), rtol=1e-4, atol=1e-4)
    trainable(x)[:, 7].sum().backward()
    touched = trainable.growth.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [7, ROWS + 1]


def test_most_frequent_tokens() -> None:
    tokens = torch.tensor([[5, 5, 2], [2, 5, 9]])
    assert second_rows.most_frequent(tokens, 12, 2).tolist() == [2, 5]
    assert second_rows.most_frequent(tokens, 12, 4).tolist() == [0, 2, 5, 9], "of equal ones the smallest"
    assert second_rows.most_frequent(tokens, 12, 2).dtype == torch.int32


@pytest.mark.parametrize("ids", [[0, 7, 50], [-1, 7, 9], [7, 7, 9], [9, 7, 8]])
def test_damaged_ids_are_refused(ids: list[int]) -> None:
    module = linear(False, prepare=False)
    assert module.weight_second is not None
    module.weight_second.copy_(torch.tensor(ids))
    with pytest.raises(InputError, match=r"lm_head\.weight_second"):
        module.prepare("lm_head")
