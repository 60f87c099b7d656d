"""The bases that rotations are built from, in the kernels: those that a kernel knows by heart and those it does not."""

from __future__ import annotations

import pytest
import torch

from dfrot.rotation.hadamard_bases import base_matrix
from dfrot_kernels import native
from dfrot_kernels.ops import references as ref


@pytest.mark.parametrize("order", [12, 20, 28, 44])
@pytest.mark.parametrize("power", [8, 16, 32, 64, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_instruction_set_has_the_bits_of_the_scalar_code(isa, order, power, dtype):
    base, block = base_matrix(order).float(), order * power
    x = torch.randn(3, block, generator=torch.Generator().manual_seed(block)).to(dtype)
    for side in (base, base.T.contiguous(), -base):
        turned = torch.ops.dfq.hadamard(x.float(), side, block)
        exact = ref.hadamard(x.double(), side, block)
        assert (turned.double() - exact).norm() < 1e-6 * exact.norm()
        codes = torch.ops.dfq.hadamard_quantize(x, side, block, 4, False, 1.0)
        for got, wanted in zip(codes, ref.quantize_per_token(turned, 4, False, 1.0), strict=True):
            assert torch.equal(got, wanted)
        if native.active():
            native.set_isa("scalar")
            assert torch.equal(turned, torch.ops.dfq.hadamard(x.float(), side, block))
            native.set_isa(isa)


def test_zeros_keep_their_signs(isa):
    base, block = base_matrix(28).float(), 28 * 64
    x = torch.zeros(1, block)
    x[0, ::3] = -0.0
    turned = torch.ops.dfq.hadamard(x, base, block)
    assert not turned.any()
    if native.active():
        native.set_isa("scalar")
        assert torch.equal(turned.signbit(), torch.ops.dfq.hadamard(x, base, block).signbit())
        native.set_isa(isa)
