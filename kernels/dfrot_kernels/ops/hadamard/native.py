"""`hadamard`, `hadamard_quantize` on the native library. Arguments are checked already."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels import bindings
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.ops.arguments import empty_tokens, transform
from dfrot_kernels.ops.hadamard import reference


def hadamard(x: Tensor, base: Tensor, block: int) -> Tensor:
    """`hadamard` of reference.py."""
    if x.dtype == torch.float64:  # for exact fusing; the library computes in float32
        return reference.hadamard(x, base, block)
    x, base = x.contiguous(), base.to(torch.float32).contiguous()
    out = torch.empty_like(x)
    bindings.hadamard(
        x=x, dtype=DTYPE_CODES[x.dtype], rows=x.numel() // block, block=block, base=base, order=base.shape[0], out=out
    )
    return out


def hadamard_quantize(
    x: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`hadamard_quantize` of reference.py."""
    m, k = x.shape
    codes, scale, zero = empty_tokens(m, k)
    base, order, block = transform(base, block)
    bindings.hadamard_quantize(
        x=x.contiguous(), dtype=DTYPE_CODES[x.dtype], m=m, k=k, base=base, order=order, block=block,
        bits=bits, symmetric=int(symmetric), clip=clip, codes=codes, scale=scale, zero=zero,
    )  # fmt: skip
    return codes, scale, zero
