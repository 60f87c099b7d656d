"""Hadamard transforms: `hadamard`, `hadamard_quantize`."""

from __future__ import annotations

from dfrot_kernels.ops.hadamard import native, reference, schema
from dfrot_kernels.ops.registry import Op

OPS = (
    Op(
        "hadamard",
        schema.HADAMARD,
        schema.check_hadamard,
        schema.hadamard_shape,
        reference.hadamard,
        native.hadamard,
        triton="dfrot_kernels.ops.hadamard.triton",
    ),
    Op(
        "hadamard_quantize",
        schema.HADAMARD_QUANTIZE,
        schema.check_hadamard_quantize,
        schema.hadamard_quantize_shape,
        reference.hadamard_quantize,
        native.hadamard_quantize,
        triton="dfrot_kernels.ops.hadamard.triton",
    ),
)
