"""Plain-torch reference of products with 4-bit weights and floating activations."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels.ops.packing.reference import dequantize


def w4a16_mm(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> Tensor:
    """x [..., K] times the 4-bit weight [N, K] transposed, float32 inside, x's dtype outside."""
    weight = dequantize(packed, scale, zero, 4, x.shape[-1], group)
    return (x.float() @ weight.T).to(x.dtype)
