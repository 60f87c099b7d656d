"""Linears behind a simulated activation quantizer: rounded in place, integer products once the weight is packed."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dfrot.arch import Tap
from dfrot.arch.space import Size, Space
from dfrot.arch.spec import Linear
from dfrot.calib.simulate import SimulatedProduct, quantize_activations
from dfrot.quant.activations import fake_quantize
from dfrot.quant.rounding import rtn
from dfrot.quant.scheme import QuantScheme


class Block(nn.Module):
    """Two linears that share an input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], dim=-1)


def simulated(scheme: str, space: Space, sinks: int = 0, overwrite: bool = False) -> Block:
    torch.manual_seed(0)
    block = Block().requires_grad_(False)
    sizes = {"rows": Size.QUERIES, "cols": Size.HIDDEN}
    linears = tuple(Linear(name=name, reads=space, writes=Space.QUERY_KEY, **sizes) for name in ("first", "second"))
    tap = Tap("first", linears, space)
    clipped = replace(QuantScheme.parse(scheme), a_clip=0.9)
    quantize_activations(block, tap, ("first", "second"), clipped, sinks, overwrite)
    return block


def expected(block: Block, scheme: QuantScheme, x: Tensor, sinks: int) -> Tensor:
    rounded = fake_quantize(x, scheme.a_bits, scheme.a_sym, 0.9)
    rounded[:, :sinks] = x[:, :sinks]
    linears = (block.first, block.second)
    return torch.cat([nn.functional.linear(rounded, linear.weight, linear.bias) for linear in linears], dim=-1)


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("name", ["w4a4kv4", "w4a4kv4-sym", "w4a8kv4-g16-wasym", "w3a4kv4"])
def test_packed_products_are_those_of_the_rounded_floats(name: str, sinks: int) -> None:
    scheme = QuantScheme.parse(name)
    block, x = simulated(name, Space.RESIDUAL, sinks), torch.randn(2, 5, 64)
    torch.testing.assert_close(block(x.clone()), expected(block, scheme, x, sinks), rtol=0, atol=0)
    for linear in (block.first, block.second):
        result = rtn.quantize(linear.weight.data, None, scheme)
        linear.weight.data = result.dequantize()
        assert isinstance(linear.forward, SimulatedProduct)
        linear.forward.pack(result.packed())
    for rows in (x, x[:1], 3 * x):  # codes of an earlier input are never used again
        torch.testing.assert_close(block(rows.clone()), expected(block, scheme, rows, sinks), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("space", "in_place"), [(Space.VALUE, True), (Space.MLP, True), (Space.RESIDUAL, False)])
def test_only_inputs_made_for_a_tap_are_overwritten(space: Space, in_place: bool) -> None:
    block, x = simulated("w4a4kv4", space, overwrite=True), torch.randn(2, 5, 64)
    before = x.clone()
    reached: list[Tensor] = []
    block.first.register_forward_pre_hook(lambda _, args: reached.append(args[0]))
    block(x)
    assert x.equal(before) != in_place
    assert (reached[0].data_ptr() == x.data_ptr()) == in_place
    torch.testing.assert_close(reached[0], fake_quantize(before, 4, False, 0.9), rtol=0, atol=0)


def test_a_block_is_freed_with_its_last_reference() -> None:
    gc.disable()
    try:
        block = simulated("w4a4kv4", Space.RESIDUAL)
        block(torch.randn(1, 3, 64))
        gone = weakref.ref(block.first)
        del block
        assert gone() is None
    finally:
        gc.enable()
