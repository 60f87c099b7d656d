"""Prepacked weights and products with them: `prepack`, `unprepack`, `w4a16_tiled_mm`, `w4a8_tiled_mm`."""

from __future__ import annotations

from dfrot_kernels.ops.registry import Op
from dfrot_kernels.ops.tile16 import native, reference, schema

OPS = (
    Op(
        "prepack",
        schema.PREPACK,
        schema.check_prepack,
        schema.prepack_shape,
        reference.prepack,
        native.prepack,
    ),
    Op(
        "unprepack",
        schema.UNPREPACK,
        schema.check_unprepack,
        schema.unprepack_shape,
        reference.unprepack,
        native.unprepack,
    ),
    Op(
        "w4a16_tiled_mm",
        schema.W4A16_TILED_MM,
        schema.check_w4a16_tiled_mm,
        schema.w4a16_tiled_mm_shape,
        reference.w4a16_tiled_mm,
        native.w4a16_tiled_mm,
    ),
    Op(
        "w4a8_tiled_mm",
        schema.W4A8_TILED_MM,
        schema.check_w4a8_tiled_mm,
        schema.w4a8_tiled_mm_shape,
        reference.w4a8_tiled_mm,
        native.w4a8_tiled_mm,
    ),
)
