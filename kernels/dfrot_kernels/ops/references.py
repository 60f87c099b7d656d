"""The plain-torch reference of every op under its name: the ground truth of tests and of the bench's gates.

Conventions (binding for every implementation): activations are rows [M, K], weights [N, K]. Weight codes are unsigned,
`w = scale * (u - zero)`; activation codes are signed int8, `x = scale * (q - zero)`.
"""

from __future__ import annotations

from dfrot_kernels.ops.fused_rows.reference import rmsnorm_quantize, silu_mul_hadamard_quantize
from dfrot_kernels.ops.hadamard.reference import hadamard, hadamard_quantize
from dfrot_kernels.ops.kv_attention.reference import kv_attention, visible
from dfrot_kernels.ops.kv_cache.reference import kv_append, kv_dequantize, kv_quantize
from dfrot_kernels.ops.packing.reference import dequantize, pack, signed_codes, unpack
from dfrot_kernels.ops.prompt_attention.reference import prompt_attention
from dfrot_kernels.ops.quantize.reference import quantize_per_token
from dfrot_kernels.ops.tile16.reference import prepack, tile_codes, unprepack, w4a8_tiled_mm, w4a16_tiled_mm
from dfrot_kernels.ops.w4a8.reference import w4a8_mm
from dfrot_kernels.ops.w4a16.reference import w4a16_mm
from dfrot_kernels.ops.w8a16.reference import w8a16_mm

__all__ = [
    "dequantize",
    "hadamard",
    "hadamard_quantize",
    "kv_append",
    "kv_attention",
    "kv_dequantize",
    "kv_quantize",
    "pack",
    "prepack",
    "prompt_attention",
    "quantize_per_token",
    "rmsnorm_quantize",
    "signed_codes",
    "silu_mul_hadamard_quantize",
    "tile_codes",
    "unpack",
    "unprepack",
    "visible",
    "w4a8_mm",
    "w4a8_tiled_mm",
    "w4a16_mm",
    "w4a16_tiled_mm",
    "w8a16_mm",
]
