"""Plain-torch reference of products with 8-bit weights and floating activations."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels.ops.packing.reference import dequantize


def w8a16_mm(x: Tensor, packed: Tensor, scale: Tensor, group: int) -> Tensor:
    """x [..., K] times the symmetric 8-bit weight [N, K] transposed, float32 inside, x's dtype outside.

    scale: bfloat16 [N, G], one for every `group` columns (a multiple of 16), 0 = one per row."""
    weight = dequantize(packed, scale, None, 8, x.shape[-1], group)
    return (x.float() @ weight.T).to(x.dtype)
