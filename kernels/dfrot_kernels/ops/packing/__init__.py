"""Packed codes: `pack`, `unpack`, `dequantize`."""

from __future__ import annotations

from dfrot_kernels.ops.packing import native, reference, schema
from dfrot_kernels.ops.registry import Op

OPS = (
    Op(
        "pack",
        schema.PACK,
        schema.check_pack,
        schema.pack_shape,
        reference.pack,
        native.pack,
    ),
    Op(
        "unpack",
        schema.UNPACK,
        schema.check_unpack,
        schema.unpack_shape,
        reference.unpack,
        native.unpack,
    ),
    Op(
        "dequantize",
        schema.DEQUANTIZE,
        schema.check_dequantize,
        schema.dequantize_shape,
        reference.dequantize,
        native.dequantize,
    ),
)
