"""Schema, checks and shape of `w4a8_mm`, `w4a4_mm`."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels.ops import checks

INTEGER_MM = "(Tensor q, Tensor x_scale, Tensor x_zero, Tensor packed, Tensor scale, Tensor? zero, int group) -> Tensor"


def check_w4a8_mm(
    q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
) -> None:
    """Raises ValueError for arguments that `w4a8_mm` refuses."""
    checks.tokens("w4a8_mm", q, x_scale, x_zero)
    checks.weight("w4a8_mm", q.shape[1], packed, scale, zero, group)


def check_w4a4_mm(
    q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
) -> None:
    """Raises ValueError for arguments that `w4a4_mm` refuses."""
    checks.tokens("w4a4_mm", q, x_scale, x_zero)
    checks.weight("w4a4_mm", q.shape[1], packed, scale, zero, group)


def integer_mm_shape(
    q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
) -> Tensor:
    """Empty outputs of `integer_mm`."""
    return x_scale.new_empty(q.shape[0], packed.shape[0])
