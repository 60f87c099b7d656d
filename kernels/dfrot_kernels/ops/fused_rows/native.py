"""`rmsnorm_quantize`, `silu_mul_hadamard_quantize` on the native library. Arguments are checked already."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels import bindings
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.ops.arguments import dense, empty_tokens, transform


def rmsnorm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, epsilon: float, bits: int, symmetric: bool, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`rmsnorm_quantize` of reference.py."""
    m, k = x.shape
    codes, scale, zero = empty_tokens(m, k)
    bindings.rmsnorm_quantize(
        x=x.contiguous(), dtype=DTYPE_CODES[x.dtype], m=m, k=k, residual=residual, weight=dense(weight),
        epsilon=epsilon, bits=bits, symmetric=int(symmetric), clip=clip, codes=codes, scale=scale, zero=zero,
    )  # fmt: skip
    return codes, scale, zero


def silu_mul_hadamard_quantize(
    gate: Tensor, up: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`silu_mul_hadamard_quantize` of reference.py."""
    m, k = gate.shape
    codes, scale, zero = empty_tokens(m, k)
    base, order, block = transform(base, block)
    bindings.silu_mul_hadamard_quantize(
        gate=gate.contiguous(), up=up.contiguous(), dtype=DTYPE_CODES[gate.dtype], m=m, k=k,
        base=base, order=order, block=block, bits=bits, symmetric=int(symmetric), clip=clip,
        codes=codes, scale=scale, zero=zero,
    )  # fmt: skip
    return codes, scale, zero
