"""A packed cache of keys and values: `kv_quantize`, `kv_dequantize`, `kv_append`."""

from __future__ import annotations

from dfrot_kernels.ops.kv_cache import native, reference, schema
from dfrot_kernels.ops.registry import Op

OPS = (
    Op(
        "kv_quantize",
        schema.KV_QUANTIZE,
        schema.check_kv_quantize,
        schema.kv_quantize_shape,
        reference.kv_quantize,
        native.kv_quantize,
        triton="dfrot_kernels.ops.kv_cache.triton",
    ),
    Op(
        "kv_dequantize",
        schema.KV_DEQUANTIZE,
        schema.check_kv_dequantize,
        schema.kv_dequantize_shape,
        reference.kv_dequantize,
        native.kv_dequantize,
        triton="dfrot_kernels.ops.kv_cache.triton",
    ),
    Op(
        "kv_append",
        schema.KV_APPEND,
        schema.check_kv_append,
        schema.kv_append_shape,
        reference.kv_append,
        native.kv_append,
        triton="dfrot_kernels.ops.kv_cache.triton",
    ),
)
