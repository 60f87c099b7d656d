"""Scales as float16, and what that cost.

Ours are bfloat16: 8 significant bits, which float16 holds exactly from 2^-17 up to 65504. Smaller ones are rounded to
float16's subnormals and counted; what would become 0 or infinite is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError


@dataclass
class Float16Rounding:
    """How many values were stored, how many of them not exactly, and the worst relative error."""

    count: int = 0
    rounded: int = 0
    worst: float = 0.0

    def half(self, values: Tensor, where: str) -> Tensor:
        """values float32 -> float16. Raises UnsupportedError naming the tensor when one leaves float16's range."""
        out = values.to(torch.float16)
        error = (out.float() - values).abs()
        lost = ~torch.isfinite(out) | ((out == 0) & (values != 0))
        if bool(lost.any()):
            worst = float(values[lost].flatten()[0])
            raise UnsupportedError(
                f"tensor {where}: scale {worst:.3g} is outside float16, which this format needs; export to "
                "compressed-tensors, which keeps bfloat16"
            )
        self.count += values.numel()
        self.rounded += int((error > 0).sum())
        relative = torch.where(values == 0, torch.zeros_like(error), error / values.abs())
        self.worst = max(self.worst, float(relative.max())) if values.numel() else self.worst
        return out

    def to_dict(self) -> dict[str, Any]:
        return {"count": self.count, "rounded": self.rounded, "worst_relative_error": float(f"{self.worst:.3g}")}
