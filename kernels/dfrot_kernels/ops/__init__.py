"""The operators `torch.ops.dfq.NAME`, one folder per family: schema, reference, native and Triton implementation.

schema.py: schemas, argument checks, shapes of the outputs; reference.py: plain torch, whose docstrings are the ops';
native.py: calls of the native library; triton.py: kernels for CUDA. Conventions of codes are in references.py.
Importing this package registers every op with its reference; dfrot_kernels/__init__.py adds what is faster.
"""

from __future__ import annotations

from dfrot_kernels.ops import (
    fused_rows,
    hadamard,
    kv_attention,
    kv_cache,
    packing,
    prompt_attention,
    quantize,
    registry,
    tile16,
    w4a8,
    w4a16,
    w8a16,
)
from dfrot_kernels.ops.registry import Op

# as `dfq doctor` lists them
_ORDER = (
    "pack",
    "unpack",
    "quantize_per_token",
    "hadamard",
    "dequantize",
    "w4a16_mm",
    "w8a16_mm",
    "w4a8_mm",
    "w4a4_mm",
    "kv_quantize",
    "kv_dequantize",
    "hadamard_quantize",
    "rmsnorm_quantize",
    "silu_mul_hadamard_quantize",
    "kv_append",
    "kv_attention",
    "prompt_attention",
    "prepack",
    "unprepack",
    "w4a16_tiled_mm",
    "w4a8_tiled_mm",
)
_FAMILIES = (
    *(packing, quantize, hadamard, fused_rows, w4a16, w4a8, w8a16, tile16),
    *(kv_cache, kv_attention, prompt_attention),
)

OPS: dict[str, Op] = {
    op.name: op for op in sorted((op for f in _FAMILIES for op in f.OPS), key=lambda op: _ORDER.index(op.name))
}
SCHEMAS: dict[str, str] = {name: op.schema for name, op in OPS.items()}

registry.define(tuple(OPS.values()))

__all__ = ["OPS", "SCHEMAS", "Op"]
