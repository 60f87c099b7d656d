"""Schema, checks and shapes of `quantize_per_token`."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops import checks

QUANTIZE_PER_TOKEN = "(Tensor x, int bits, bool symmetric, float clip) -> (Tensor, Tensor, Tensor)"


def check_quantize_per_token(x: Tensor, bits: int, symmetric: bool, clip: float) -> None:
    """Raises ValueError for arguments that `quantize_per_token` refuses."""
    checks.bits_ok("quantize_per_token", bits)
    checks.matrix("quantize_per_token", "x", x, checks.FLOATS)
    checks.clip_ok("quantize_per_token", clip)


def token_shapes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty codes int8 [M, K], scale float32 [M] and zero int32 [M] for rows x [M, K]."""
    rows = x.shape[0]
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(rows, dtype=torch.float32),
        x.new_empty(rows, dtype=torch.int32),
    )


def quantize_per_token_shape(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """Empty outputs of `quantize_per_token`."""
    return token_shapes(x)
