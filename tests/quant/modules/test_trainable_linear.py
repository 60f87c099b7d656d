"""A linear whose scales learn: the output is the served one, gradients are those of finite differences."""

from __future__ import annotations

import pytest
import torch

from dfrot.quant.activations import fake_quantize
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.modules.trainable_linear import TrainableLinear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.sinks import Sinks
from dfrot_kernels.layouts import PackedWeight

ROWS, COLS = 24, 64
PLANS = {
    "w4a4": (4, 4, 0, True),
    "w4a8-g32": (4, 8, 32, True),
    "w4a16-asym": (4, 16, 0, False),
    "w3a4-g32-asym": (3, 4, 32, False),
    "w8a16": (8, 16, 0, True),
}


def quantized(name: str, sinks: int = 0) -> QuantLinear:
    torch.manual_seed(0)
    bits, a_bits, group, symmetric = PLANS[name]
    plan = LinearPlan(
        "x", ROWS, COLS, packed=True, w_bits=bits, group=group, w_sym=symmetric, a_bits=a_bits, a_sym=False, a_clip=0.9
    )
    module = QuantLinear(plan, True, torch.float32)
    groups = COLS // group if group else 1
    codes = torch.randint(0, 2**bits, (ROWS, COLS), dtype=torch.uint8)
    zero = None if symmetric else torch.randint(1, 2**bits - 1, (ROWS, groups), dtype=torch.uint8)
    weight = PackedWeight.from_codes(codes, torch.rand(ROWS, groups).add_(0.1).bfloat16(), zero, bits, group)
    module.weight_packed, module.weight_scale, module.weight_zero = weight.packed, weight.scale, weight.zero
    assert module.bias is not None
    module.bias.data = torch.randn(ROWS)
    module.prepare("x")
    if sinks:
        module.sinks = Sinks(sinks)
        module.sinks.begin(1, 10, 0, None)
    return module


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("sinks", [0, 3])
def test_the_output_is_the_served_one(name: str, sinks: int) -> None:
    module, x = quantized(name, sinks), torch.randn(1, 10, COLS)
    expected = module(x)
    linear = TrainableLinear(module)
    assert torch.equal(linear(x), expected)
    before = linear.packed().scale.clone()
    with torch.no_grad():
        linear.growth.add_(0.5)
    assert torch.equal(linear.packed().scale, (before.float() * torch.tensor(0.5).exp()).bfloat16())
    assert not torch.equal(linear(x), expected)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("sinks", [0, 3])
def test_gradients_are_those_of_the_dense_product(name: str, sinks: int) -> None:
    module, weights = quantized(name, sinks), torch.randn(1, 10, ROWS)
    linear = TrainableLinear(module)
    x = torch.randn(1, 10, COLS, requires_grad=True)
    (linear(x) * weights).sum().backward()
    dense = module.stored_weight().dequantize(torch.float32)
    rounded = fake_quantize(x.detach()[0], module.plan.a_bits, module.plan.a_sym, module.plan.a_clip)
    if sinks:
        rounded[:sinks] = x.detach()[0, :sinks]
    exact_rows = weights[0] @ dense
    assert x.grad is not None
    assert float((x.grad[0] - exact_rows).norm() / exact_rows.norm()) < 0.01  # through the rounding as if it were none
    exact_growth = ((weights[0].T @ rounded) * dense).sum(1, keepdim=True)
    assert linear.growth.grad is not None
    assert float((linear.growth.grad - exact_growth).norm() / exact_growth.norm()) < 0.01


def test_the_scale_s_gradient_is_that_of_finite_differences() -> None:
    linear, x = TrainableLinear(quantized("w4a4")), torch.randn(1, 10, COLS)
    linear(x)[..., 5].sum().backward()
    assert linear.growth.grad is not None
    step, values = 0.25, []
    for sign in (1, -1):
        with torch.no_grad():
            linear.growth.zero_()[5] = sign * step
        values.append(float(linear(x)[..., 5].sum()))
    slope = (values[0] - values[1]) / (2 * torch.sinh(torch.tensor(step)))  # the output is linear in the scale
    assert float(linear.growth.grad[5]) == pytest.approx(float(slope), rel=0.02)  # bfloat16 scales
    assert float(linear.growth.grad[4]) == 0
