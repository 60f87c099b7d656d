"""Attention on a packed cache: `kv_attention`."""

from __future__ import annotations

from dfrot_kernels.ops.kv_attention import native, reference, schema
from dfrot_kernels.ops.registry import Op

OPS = (
    Op(
        "kv_attention",
        schema.KV_ATTENTION,
        schema.check_kv_attention,
        schema.kv_attention_shape,
        reference.kv_attention,
        native.kv_attention,
        triton="dfrot_kernels.ops.kv_attention.triton",
    ),
)
