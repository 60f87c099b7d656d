"""The ops on CPU: allocate the output, make inputs contiguous, call libdfq_cpu. Arguments are checked already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot_kernels import ref
from dfrot_kernels.native import call

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def pack(codes: Tensor, bits: int) -> Tensor:
    n, k = codes.shape
    out = _empty(n, (k * bits + 7) // 8, dtype=torch.uint8)
    call("dfq_pack", codes.contiguous(), n, k, bits, out)
    return out


def unpack(packed: Tensor, bits: int, k: int) -> Tensor:
    out = _empty(packed.shape[0], k, dtype=torch.uint8)
    call("dfq_unpack", packed.contiguous(), packed.shape[0], k, bits, out)
    return out


def dequantize(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, k: int, group: int) -> Tensor:
    n = packed.shape[0]
    out = _empty(n, k, dtype=torch.float32)
    call("dfq_dequantize", packed.contiguous(), scale.contiguous(), _dense(zero), n, k, bits, group, out)
    return out


def quantize_per_token(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    m, k = x.shape
    codes, scale, zero = (
        _empty(m, k, dtype=torch.int8),
        _empty(m, dtype=torch.float32),
        _empty(m, dtype=torch.int32),
    )
    dtype = DTYPE_CODES[x.dtype]
    call("dfq_quantize_per_token", x.contiguous(), dtype, m, k, bits, int(symmetric), clip, codes, scale, zero)
    return codes, scale, zero


def hadamard(x: Tensor, base: Tensor, block: int) -> Tensor:
    if x.dtype == torch.float64:  # for exact fusing; the library computes in float32
        return ref.hadamard(x, base, block)
    x, base = x.contiguous(), base.to(torch.float32).contiguous()
    out = torch.empty_like(x)
    call("dfq_hadamard", x, DTYPE_CODES[x.dtype], x.numel() // block, block, base, base.shape[0], out)
    return out


def w4a16_mm(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> Tensor:
    lead, k, n = x.shape[:-1], x.shape[-1], packed.shape[0]
    m = lead.numel()
    out = _empty(*lead, n, dtype=x.dtype)
    weight = (packed.contiguous(), scale.contiguous(), _dense(zero))
    call("dfq_w4a16_mm", x.contiguous(), DTYPE_CODES[x.dtype], m, n, k, *weight, group, out)
    return out


def integer_mm(
    q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
) -> Tensor:
    m, k = q.shape
    n = packed.shape[0]
    out = _empty(m, n, dtype=torch.float32)
    tokens = (q.contiguous(), x_scale.contiguous(), x_zero.contiguous())
    call("dfq_w4a8_mm", *tokens, m, n, k, packed.contiguous(), scale.contiguous(), _dense(zero), group, out)
    return out


def kv_quantize(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    lead, width = x.shape[:-1], x.shape[-1]
    rows = lead.numel()
    packed, scale, zero = (
        _empty(*lead, (width * bits + 7) // 8, dtype=torch.uint8),
        _empty(*lead, dtype=torch.float16),
        _empty(*lead, dtype=torch.uint8),
    )
    dtype = DTYPE_CODES[x.dtype]
    call("dfq_kv_quantize", x.contiguous(), dtype, rows, width, bits, int(symmetric), clip, packed, scale, zero)
    return packed, scale, zero


def kv_dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, width: int, bits: int, dtype: torch.dtype
) -> Tensor:
    out = _empty(*packed.shape[:-1], width, dtype=dtype)
    stored = (packed.contiguous(), scale.contiguous(), _dense(zero))
    call("dfq_kv_dequantize", *stored, scale.numel(), width, bits, DTYPE_CODES[dtype], out)
    return out


KERNELS: dict[str, Callable[..., Any]] = {
    "pack": pack,
    "unpack": unpack,
    "dequantize": dequantize,
    "quantize_per_token": quantize_per_token,
    "hadamard": hadamard,
    "w4a16_mm": w4a16_mm,
    "w4a8_mm": integer_mm,
    "w4a4_mm": integer_mm,  # the kernel measures the range of the codes: four-bit codes take the faster path
    "kv_quantize": kv_quantize,
    "kv_dequantize": kv_dequantize,
}
