"""The FP4 linear: what it computes, what it stores, what it keeps when the model changes its dtype."""

from __future__ import annotations

import pytest
import torch

from dfrot.errors import InputError
from dfrot.quant.fp4 import round_groups
from dfrot.quant.modules.dense_linear import DenseLinear
from dfrot.quant.modules.fp4_linear import Fp4Linear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rounding import rtn
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.sinks import Sinks


def made(name: str, bias: bool = True) -> tuple[Fp4Linear, torch.Tensor]:
    scheme = QuantScheme.parse(name)
    generator = torch.Generator().manual_seed(0)
    result = rtn.quantize(torch.randn(24, 64, generator=generator), None, scheme)
    plan = LinearPlan(
        "linear",
        24,
        64,
        True,
        4,
        scheme.w_group,
        True,
        scheme.a_bits,
        scheme.a_sym,
        number_format=scheme.number_format,
        a_scale=100.0 if scheme.number_format == "nvfp4" else None,
    )
    linear = Fp4Linear(plan, bias, torch.float32)
    state = dict(result.tensors())
    if bias:
        state["bias"] = torch.randn(24, generator=generator)
    linear.load_state_dict(state)
    linear.prepare("linear")
    return linear, result.dequantize()


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "nvfp4a16", "mxfp4a16"])
def test_the_product_is_that_of_decoded_weights_and_rounded_activations(name: str) -> None:
    linear, weight = made(name)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    rounded = x if name.endswith("a16") else round_groups(x, name, linear.plan.a_scale)
    torch.testing.assert_close(linear(x), torch.nn.functional.linear(rounded, weight, linear.bias))
    dense = DenseLinear(linear.plan, True, torch.float32, torch.float32)
    dense.load_state_dict({"weight": weight, "bias": linear.bias})
    dense.prepare("linear")
    assert torch.equal(dense(x), linear(x))  # the simulated checkpoint computes the same bits
    half = linear.to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_sinks_are_not_rounded() -> None:
    linear, weight = made("nvfp4", bias=False)
    x = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(2))
    linear.sinks = Sinks(2)
    linear.sinks.begin(1, 6, 0, None)
    torch.testing.assert_close(linear(x)[:, :2], x[:, :2] @ weight.T)
    assert not torch.allclose(linear(x)[:, 2:], x[:, 2:] @ weight.T, atol=1e-3)


def test_scales_keep_their_dtypes_and_the_state_stays_packed() -> None:
    linear, _ = made("nvfp4")
    before = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    assert set(before) == {"weight_packed", "weight_scale", "weight_global_scale", "bias"}
    linear.to(torch.float16)
    for name, tensor in linear.state_dict().items():
        assert tensor.dtype == (torch.float16 if name == "bias" else before[name].dtype), name
        if name != "bias":
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name
    assert linear.decoded is not None
    assert linear.decoded.dtype == torch.float32


def test_damage_is_found_before_the_weight_is_used() -> None:
    linear, _ = made("mxfp4")
    linear.weight_scale[1, 0] = 255
    with pytest.raises(InputError, match=r"model\.linear\.weight_scale"):
        linear.prepare("model.linear")
