"""The ops as Triton kernels for CUDA. Importing this package imports Triton; cuda.py does so at the first CUDA call.

Each module holds kernels and the functions that launch them, on arguments that are checked already. The functions work
on tensors of any device: under Triton's interpreter (TRITON_INTERPRET=1) the same code runs on CPU tensors, which is
how a machine without a GPU tests it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dfrot_kernels.triton import attention, hadamard, kv, quantize, w4a8, w4a16

KERNELS: dict[str, Callable[..., Any]] = {
    "quantize_per_token": quantize.quantize_per_token,
    "hadamard": hadamard.hadamard,
    "hadamard_quantize": hadamard.hadamard_quantize,
    "kv_append": kv.kv_append,
    "kv_attention": attention.kv_attention,
    "kv_dequantize": kv.kv_dequantize,
    "kv_quantize": kv.kv_quantize,
    "w4a16_mm": w4a16.w4a16_mm,
    "w4a8_mm": w4a8.integer_mm,
    "w4a4_mm": w4a8.integer_mm,
}
