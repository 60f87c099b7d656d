"""Products of integer activations and 4-bit weights in the canonical layout: `w4a8_mm`, `w4a4_mm`."""

from __future__ import annotations

from dfrot_kernels.ops.registry import Op
from dfrot_kernels.ops.w4a8 import native, reference, schema

# w4a4_mm: the same mathematics; a kernel may accumulate codes of four bits in 16 bits
OPS = (
    Op(
        "w4a8_mm",
        schema.INTEGER_MM,
        schema.check_w4a8_mm,
        schema.integer_mm_shape,
        reference.w4a8_mm,
        native.integer_mm,
        triton="dfrot_kernels.ops.w4a8.triton",
    ),
    Op(
        "w4a4_mm",
        schema.INTEGER_MM,
        schema.check_w4a4_mm,
        schema.integer_mm_shape,
        reference.w4a8_mm,
        native.integer_mm,
        triton="dfrot_kernels.ops.w4a8.triton",
    ),
)
