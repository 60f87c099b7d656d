"""Row ops of several steps, a row staying in cache: `rmsnorm_quantize`, `silu_mul_hadamard_quantize`."""

from __future__ import annotations

from dfrot_kernels.ops.fused_rows import native, reference, schema
from dfrot_kernels.ops.registry import Op

OPS = (
    Op(
        "rmsnorm_quantize",
        schema.RMSNORM_QUANTIZE,
        schema.check_rmsnorm_quantize,
        schema.rmsnorm_quantize_shape,
        reference.rmsnorm_quantize,
        native.rmsnorm_quantize,
    ),
    Op(
        "silu_mul_hadamard_quantize",
        schema.SILU_MUL_HADAMARD_QUANTIZE,
        schema.check_silu_mul_hadamard_quantize,
        schema.silu_mul_hadamard_quantize_shape,
        reference.silu_mul_hadamard_quantize,
        native.silu_mul_hadamard_quantize,
    ),
)
