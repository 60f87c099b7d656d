"""`kv_quantize`, `kv_dequantize`, `kv_append` on the native library. Arguments are checked already."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels import bindings
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.ops.arguments import dense, transform


def kv_quantize(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """`kv_quantize` of reference.py."""
    lead, width = x.shape[:-1], x.shape[-1]
    packed = torch.empty((*lead, (width * bits + 7) // 8), dtype=torch.uint8)
    scale, zero = torch.empty(lead, dtype=torch.float16), torch.empty(lead, dtype=torch.uint8)
    bindings.kv_quantize(
        x=x.contiguous(), dtype=DTYPE_CODES[x.dtype], rows=lead.numel(), width=width,
        bits=bits, symmetric=int(symmetric), clip=clip, packed=packed, scale=scale, zero=zero,
    )  # fmt: skip
    return packed, scale, zero


def kv_dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, width: int, bits: int, dtype: torch.dtype
) -> Tensor:
    """`kv_dequantize` of reference.py."""
    out = torch.empty((*packed.shape[:-1], width), dtype=dtype)
    bindings.kv_dequantize(
        packed=packed.contiguous(), scale=scale.contiguous(), zero=dense(zero), rows=scale.numel(), width=width,
        bits=bits, dtype=DTYPE_CODES[dtype], out=out,
    )  # fmt: skip
    return out


def kv_append(
    key: Tensor,
    value: Tensor,
    k_packed: Tensor,
    k_scale: Tensor,
    k_zero: Tensor | None,
    v_packed: Tensor,
    v_scale: Tensor,
    v_zero: Tensor | None,
    position: int,
    bits: int,
    clip: float,
    base: Tensor | None,
    block: int,
    shift: Tensor | None = None,
) -> None:
    """`kv_append` of reference.py."""
    batch, rows, heads, k_dim = key.shape
    base, order, block = transform(base, block)
    bindings.kv_append(
        key=key.contiguous(), value=value.contiguous(), dtype=DTYPE_CODES[key.dtype],
        batch=batch, rows=rows, heads=heads, k_dim=k_dim, v_dim=value.shape[3],
        k_packed=k_packed, k_scale=k_scale, k_zero=k_zero, v_packed=v_packed, v_scale=v_scale, v_zero=v_zero,
        position=position, bits=bits, symmetric=int(k_zero is None), clip=clip, base=base, order=order, block=block,
        shift=dense(shift),
    )  # fmt: skip
