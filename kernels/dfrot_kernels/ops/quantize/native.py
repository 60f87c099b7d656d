"""`quantize_per_token` on the native library. Arguments are checked already."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels import bindings
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.ops.arguments import empty_tokens


def quantize_per_token(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """`quantize_per_token` of reference.py."""
    m, k = x.shape
    codes, scale, zero = empty_tokens(m, k)
    bindings.quantize_per_token(
        x=x.contiguous(), dtype=DTYPE_CODES[x.dtype], m=m, k=k, bits=bits, symmetric=int(symmetric), clip=clip,
        codes=codes, scale=scale, zero=zero,
    )  # fmt: skip
    return codes, scale, zero
