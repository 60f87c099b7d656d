"""The deployed activation quantizer, row by row: levels, scale and error of dynamic per-token quantization.

Same convention as `torch.ops.dfq.quantize_per_token`: symmetric scale = clip max|x| / (2^(b-1) - 1), codes in
[-2^(b-1), 2^(b-1) - 1]; asymmetric scale = clip (max - min) / (2^b - 1) with zero inside the range. Rounding is
half to even, a row of zeros has scale 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError


@dataclass(frozen=True)
class TokenQuantizer:
    """A dynamic per-token quantizer. Raises InputError for bits or a clip ratio out of range."""

    bits: int = 4
    """2 to 8."""
    symmetric: bool = False
    """Without a zero point."""
    clip: float = 1.0
    """Share of the row's range that the levels cover, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InputError(f"activation bits {self.bits}: the refinement quantizes to 2..8 bits")
        if not 0.0 < self.clip <= 1.0:
            raise InputError(f"activation clip {self.clip}: a ratio in (0, 1] is needed")

    def levels(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Signed levels k [n, d] (integers in y's dtype: code minus zero point) and scale [n, 1]: Q(y) = scale k."""
        scale, least, largest = self.range_of(y)
        return torch.div(y, scale).round_().clamp_(least, largest), scale

    def range_of(self, y: Tensor) -> tuple[Tensor, Any, Any]:
        """Scale [n, 1], differentiable, and the least and the largest level: numbers, or [n, 1] of asymmetric grids."""
        if self.symmetric:
            half = 2 ** (self.bits - 1)
            scale = y.abs().amax(1, keepdim=True) * (self.clip / (half - 1))
            return torch.where(scale == 0, torch.ones_like(scale), scale), -half, half - 1
        top = 2**self.bits - 1
        low, high = torch.aminmax(y, dim=1, keepdim=True)
        low, high = low.clamp(max=0.0) * self.clip, high.clamp(min=0.0) * self.clip
        scale = (high - low) / top
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.round(-low / scale).detach()  # unsigned zero point, 0..top
        return scale, -zero, top - zero

    def quantize(self, y: Tensor) -> Tensor:
        """Q(y): rows [n, d] rounded to their levels, in y's dtype."""
        levels, scale = self.levels(y)
        return levels.mul_(scale)

    def error(self, y: Tensor) -> Tensor:
        """|y - Q(y)|^2 per row, float64 [n]; differences in y's dtype, squares summed in float64."""
        return self.quantize(y).sub_(y).double().square_().sum(1)
