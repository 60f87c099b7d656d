"""Products of floating activations and 8-bit weights in the canonical layout: `w8a16_mm`."""

from __future__ import annotations

from dfrot_kernels.ops.registry import Op
from dfrot_kernels.ops.w8a16 import native, reference, schema

OPS = (
    Op(
        "w8a16_mm",
        schema.W8A16_MM,
        schema.check_w8a16_mm,
        schema.w8a16_mm_shape,
        reference.w8a16_mm,
        native.w8a16_mm,
    ),
)
