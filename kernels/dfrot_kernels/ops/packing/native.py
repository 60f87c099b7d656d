"""`pack`, `unpack`, `dequantize` on the native library. Arguments are checked already."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels import bindings
from dfrot_kernels.ops.arguments import dense


def pack(codes: Tensor, bits: int) -> Tensor:
    """`pack` of reference.py."""
    n, k = codes.shape
    packed = torch.empty((n, (k * bits + 7) // 8), dtype=torch.uint8)
    bindings.pack(codes=codes.contiguous(), n=n, k=k, bits=bits, packed=packed)
    return packed


def unpack(packed: Tensor, bits: int, k: int) -> Tensor:
    """`unpack` of reference.py."""
    n = packed.shape[0]
    codes = torch.empty((n, k), dtype=torch.uint8)
    bindings.unpack(packed=packed.contiguous(), n=n, k=k, bits=bits, codes=codes)
    return codes


def dequantize(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, k: int, group: int) -> Tensor:
    """`dequantize` of reference.py."""
    n = packed.shape[0]
    w = torch.empty((n, k), dtype=torch.float32)
    bindings.dequantize(
        packed=packed.contiguous(), scale=scale.contiguous(), zero=dense(zero), n=n, k=k, bits=bits, group=group, w=w
    )
    return w
