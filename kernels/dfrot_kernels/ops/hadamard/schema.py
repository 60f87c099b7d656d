"""Schemas, checks and shapes of `hadamard`, `hadamard_quantize`."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels.ops import checks
from dfrot_kernels.ops.quantize.schema import token_shapes

HADAMARD = "(Tensor x, Tensor base, int block) -> Tensor"
HADAMARD_QUANTIZE = (
    "(Tensor x, Tensor? base, int block, int bits, bool symmetric, float clip) -> (Tensor, Tensor, Tensor)"
)


def check_hadamard(x: Tensor, base: Tensor, block: int) -> None:
    """Raises ValueError for arguments that `hadamard` refuses."""
    checks.blocks("hadamard", x, base, block)


def rotated_rows(op: str, name: str, x: Tensor, base: Tensor | None, block: int, bits: int, clip: float) -> None:
    """Rows x [M, K] that are rotated (base None: not) and quantized: their dtype, bits, clip and blocks."""
    checks.bits_ok(op, bits)
    checks.matrix(op, name, x, checks.FLOATS)
    checks.clip_ok(op, clip)
    if base is not None:
        checks.blocks(op, x, base, block)


def check_hadamard_quantize(
    x: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> None:
    """Raises ValueError for arguments that `hadamard_quantize` refuses."""
    rotated_rows("hadamard_quantize", "x", x, base, block, bits, clip)


def hadamard_shape(x: Tensor, base: Tensor, block: int) -> Tensor:
    """Empty outputs of `hadamard`."""
    return x.new_empty(x.shape)


def hadamard_quantize_shape(
    x: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty outputs of `hadamard_quantize`."""
    return token_shapes(x)
