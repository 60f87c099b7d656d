"""The linears by themselves: against the formula, with sinks, biases and casts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dfrot_kernels  # noqa: F401
from dfrot.quant.activations import fake_quantize
from dfrot.quant.modules.dense_linear import DenseLinear
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.sinks import Sinks
from dfrot.rotation.hadamard import hadamard_matrix, hadamard_plan
from dfrot_kernels.layouts import PackedWeight

N, K = 24, 96


def make(a_bits: int, bias: bool = True, r4: bool = True, sym: bool = False) -> tuple[QuantLinear, Tensor]:
    generator = torch.Generator().manual_seed(0)
    spec = hadamard_plan(K) if r4 else None
    linear_plan = LinearPlan("x", N, K, True, 4, 0, True, a_bits, sym, 1.0, spec)
    module = QuantLinear(linear_plan, bias, torch.float32)
    codes = torch.randint(1, 16, (N, K), dtype=torch.uint8, generator=generator)
    scale = (torch.rand(N, 1, generator=generator) + 0.5).bfloat16()
    packed = PackedWeight.from_codes(codes, scale, None, 4, 0)
    module.weight_packed, module.weight_scale = packed.packed, scale
    if module.bias is not None:
        module.bias.data.normal_(generator=generator)
    module.prepare("x")
    return module, packed.dequantize(torch.float32)


@pytest.mark.parametrize("a_bits", [3, 4, 8, 16])
@pytest.mark.parametrize("sym", [False, True])
def test_follows_the_formula(a_bits: int, sym: bool) -> None:
    module, weight = make(a_bits, sym=sym)
    x = torch.randn(2, 5, K)
    rotated = x @ hadamard_matrix(hadamard_plan(K)).float()
    expected = fake_quantize(rotated, a_bits, sym) @ weight.T + module.bias
    assert torch.allclose(module(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert torch.allclose(DenseLinear.twin(module)(x), module(x), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_sinks_see_full_activations() -> None:
    module, weight = make(4, bias=False)
    sinks = Sinks(2)
    module.sinks = sinks
    x = torch.randn(2, 5, K)
    exact = (x @ hadamard_matrix(hadamard_plan(K)).float()) @ weight.T
    plain = module(x)
    sinks.begin(2, 5, 0, None)
    mixed = module(x)
    twin = DenseLinear.twin(module)(x)
    sinks.end()
    assert torch.allclose(mixed[:, :2], exact[:, :2], rtol=1e-3, atol=1e-2)
    assert torch.equal(mixed[:, 2:], plain[:, 2:])
    assert torch.allclose(twin, mixed, rtol=1e-3, atol=1e-2)
    assert float((plain[:, :2] - exact[:, :2]).norm()) > 10 * float((mixed[:, :2] - exact[:, :2]).norm())
    assert torch.equal(module(x), plain), "the sinks end with the call"


def test_casting_a_model_leaves_scales_alone() -> None:
    module, _ = make(4)
    x = torch.randn(3, K)
    before = module(x)
    for dtype in (torch.float16, torch.float32):
        module.to(dtype)
        assert module.stored_weight().scale.dtype == torch.bfloat16
        assert module.bias is not None
        assert module.bias.dtype == dtype
    assert torch.allclose(module(x), before, atol=2e-2)
    assert module.half()(x.half()).dtype == torch.float16
