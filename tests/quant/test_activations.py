"""Simulated activations have the values of the integer path."""

from __future__ import annotations

import pytest
import torch

import dfrot_kernels  # noqa: F401
from dfrot.quant.activations import activation_quantizer, fake_quantize
from dfrot.quant.scheme import QuantScheme


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("symmetric", "clip"), [(False, 1.0), (True, 1.0), (False, 0.8), (True, 0.7)])
def test_simulated_activations_equal_the_integer_path(bits: int, symmetric: bool, clip: float) -> None:
    x = torch.randn(40, 33, generator=torch.Generator().manual_seed(bits)) * torch.logspace(-6, 6, 40)[:, None]
    x[3] = 0
    x[4] = x[4].abs()
    codes, scale, zero = torch.ops.dfq.quantize_per_token(x, bits, symmetric, clip)
    exact = (codes.float() - zero[:, None]) * scale[:, None]
    assert torch.equal(fake_quantize(x, bits, symmetric, clip), exact)
    scheme = QuantScheme(4, bits, 16, a_sym=symmetric, a_clip=clip)
    assert torch.equal(activation_quantizer(scheme)(x), exact)


def test_sixteen_bits_are_the_identity() -> None:
    x = torch.randn(3, 8).bfloat16()
    assert fake_quantize(x, 16, False) is x
    assert fake_quantize(x, 4, False).dtype == torch.bfloat16
