"""Schema, checks and shape of `w8a16_mm`."""

from __future__ import annotations

from torch import Tensor

from dfrot_kernels.ops import checks

W8A16_MM = "(Tensor x, Tensor packed, Tensor scale, int group) -> Tensor"
LANES = 16  # columns that a kernel multiplies together


def supports(bits: int, k: int, group: int, symmetric: bool) -> bool:
    """Whether a weight of these codes has a product here: 8 bits without zero points, groups of whole lanes."""
    return bits == 8 and symmetric and (group % LANES == 0 or group >= k)


def check_w8a16_mm(x: Tensor, packed: Tensor, scale: Tensor, group: int) -> None:
    """Raises ValueError for arguments that `w8a16_mm` refuses."""
    if x.dim() < 1:
        checks.fail("w8a16_mm", "x is a scalar, rows are needed")
    checks.dtype("w8a16_mm", "x", x, checks.FLOATS)
    checks.weight("w8a16_mm", x.shape[-1], packed, scale, None, group, 8)
    if not supports(8, x.shape[-1], group, True):
        checks.fail("w8a16_mm", f"group is {group}, 0 (per row) or a multiple of {LANES} is needed")


def w8a16_mm_shape(x: Tensor, packed: Tensor, scale: Tensor, group: int) -> Tensor:
    """Empty outputs of `w8a16_mm`."""
    return x.new_empty(*x.shape[:-1], packed.shape[0])
