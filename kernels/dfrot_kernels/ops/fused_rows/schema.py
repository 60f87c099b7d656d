"""Schemas, checks and shapes of `rmsnorm_quantize`, `silu_mul_hadamard_quantize`."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels.ops import checks
from dfrot_kernels.ops.hadamard.schema import rotated_rows
from dfrot_kernels.ops.quantize.schema import token_shapes

_CODES = "int bits, bool symmetric, float clip) -> (Tensor, Tensor, Tensor)"
RMSNORM_QUANTIZE = f"(Tensor x, Tensor(a!)? residual, Tensor? weight, float epsilon, {_CODES}"
SILU_MUL_HADAMARD_QUANTIZE = f"(Tensor gate, Tensor up, Tensor? base, int block, {_CODES}"


def _same(op: str, name: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...]) -> None:
    checks.dtype(op, name, tensor, (like.dtype,))
    checks.shape(op, name, tensor, shape)


def check_rmsnorm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, epsilon: float, bits: int, symmetric: bool, clip: float
) -> None:
    """Raises ValueError for arguments that `rmsnorm_quantize` refuses."""
    op = "rmsnorm_quantize"
    rotated_rows(op, "x", x, None, 0, bits, clip)
    if not epsilon >= 0:
        checks.fail(op, f"epsilon is {epsilon}, 0 or more is needed")
    if residual is not None:
        _same(op, "residual", residual, x, tuple(x.shape))
        if not residual.is_contiguous():
            checks.fail(op, "residual is not contiguous; it is written in place")
    if weight is not None:
        _same(op, "weight", weight, x, (x.shape[1],))


def check_silu_mul_hadamard_quantize(
    gate: Tensor, up: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> None:
    """Raises ValueError for arguments that `silu_mul_hadamard_quantize` refuses."""
    op = "silu_mul_hadamard_quantize"
    rotated_rows(op, "gate", gate, base, block, bits, clip)
    _same(op, "up", up, gate, tuple(gate.shape))


def rmsnorm_quantize_shape(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, epsilon: float, bits: int, symmetric: bool, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty outputs of `rmsnorm_quantize`."""
    return token_shapes(x)


def silu_mul_hadamard_quantize_shape(
    gate: Tensor, up: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty outputs of `silu_mul_hadamard_quantize`."""
    return token_shapes(gate)
