"""Plain-torch reference of the fused row ops: rows [M, K] to codes of `quantize_per_token`, and what comes before."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops.hadamard.reference import hadamard_quantize
from dfrot_kernels.ops.quantize.reference import quantize_per_token

Tokens = tuple[Tensor, Tensor, Tensor]  # codes, scale, zero


def rmsnorm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, epsilon: float, bits: int, symmetric: bool, clip: float
) -> Tokens:
    """RMSNorm and quantization of x [M, K]. residual [M, K]: x is added to it in place, and the sum is normed.

    Rounded to x's dtype after the sum, after the division by the root mean square and after the product with weight
    [K], as separate operators would."""
    rows = x if residual is None else residual.add_(x)
    wide = rows.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)
    return quantize_per_token(normed if weight is None else normed * weight, bits, symmetric, clip)


def silu_mul_hadamard_quantize(
    gate: Tensor, up: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> Tokens:
    """silu(gate) * up, both [M, K], then `hadamard_quantize`. Rounded to the dtype after silu and after the product."""
    return hadamard_quantize(torch.nn.functional.silu(gate) * up, base, block, bits, symmetric, clip)
