"""Products of floating activations and 4-bit weights in the canonical layout: `w4a16_mm`."""

from __future__ import annotations

from dfrot_kernels.ops.registry import Op
from dfrot_kernels.ops.w4a16 import native, reference, schema

OPS = (
    Op(
        "w4a16_mm",
        schema.W4A16_MM,
        schema.check_w4a16_mm,
        schema.w4a16_mm_shape,
        reference.w4a16_mm,
        native.w4a16_mm,
        triton="dfrot_kernels.ops.w4a16.triton",
    ),
)
