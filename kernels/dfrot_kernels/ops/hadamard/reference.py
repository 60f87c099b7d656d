"""Plain-torch reference of Hadamard transforms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfrot_kernels.ops.quantize.reference import quantize_per_token

Tokens = tuple[Tensor, Tensor, Tensor]  # codes, scale, zero


def hadamard(x: Tensor, base: Tensor, block: int) -> Tensor:
    """x [..., n] times the block-diagonal (base (x) Sylvester) / sqrt(block), computed in float32 (or float64)."""
    work = x.double() if x.dtype == torch.float64 else x.float()
    order = base.shape[0]
    y = work.reshape(-1, order, block // order)
    size = block // order
    half = 1
    while half < size:
        y = y.reshape(-1, order, size // (2 * half), 2, half)
        y = torch.stack((y[:, :, :, 0] + y[:, :, :, 1], y[:, :, :, 0] - y[:, :, :, 1]), dim=3)
        half *= 2
    y = y.reshape(-1, order, size)
    if order > 1:
        y = torch.einsum("rks,kj->rjs", y, base.to(work))
    return (y / math.sqrt(block)).reshape(x.shape).to(x.dtype)


def hadamard_quantize(x: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float) -> Tokens:
    """x [M, K] times the Hadamard transform of `hadamard` (base None: none) in float32, then `quantize_per_token`."""
    rows = x.float() if base is None else hadamard(x.float(), base, block)
    return quantize_per_token(rows, bits, symmetric, clip)
