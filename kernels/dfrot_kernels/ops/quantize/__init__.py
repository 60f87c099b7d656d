"""Dynamic quantization of activations: `quantize_per_token`."""

from __future__ import annotations

from dfrot_kernels.ops.quantize import native, reference, schema
from dfrot_kernels.ops.registry import Op

OPS = (
    Op(
        "quantize_per_token",
        schema.QUANTIZE_PER_TOKEN,
        schema.check_quantize_per_token,
        schema.quantize_per_token_shape,
        reference.quantize_per_token,
        native.quantize_per_token,
        triton="dfrot_kernels.ops.quantize.triton",
    ),
)
