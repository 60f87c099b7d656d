"""Schema, checks and shape of `w4a16_mm`."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels.ops import checks

W4A16_MM = "(Tensor x, Tensor packed, Tensor scale, Tensor? zero, int group) -> Tensor"


def check_w4a16_mm(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> None:
    """Raises ValueError for arguments that `w4a16_mm` refuses."""
    if x.dim() < 1:
        checks.fail("w4a16_mm", "x is a scalar, rows are needed")
    checks.dtype("w4a16_mm", "x", x, checks.FLOATS)
    checks.weight("w4a16_mm", x.shape[-1], packed, scale, zero, group)


def w4a16_mm_shape(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> Tensor:
    """Empty outputs of `w4a16_mm`."""
    return x.new_empty(*x.shape[:-1], packed.shape[0])
