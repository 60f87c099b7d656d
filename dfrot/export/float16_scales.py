"""Scales as float16, and what the conversion cost.

Our scales are bfloat16. Their 8 significant bits are exact in float16 from 2^-17 up to 65504. Smaller scales are
rounded to float16's subnormals and counted; a scale that would become 0 or infinite is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError


@dataclass
class Float16Rounding:
    """Counts what `to_float16` did, over all tensors of an export."""

    count: int = 0
    """Values converted."""
    rounded: int = 0
    """Values that float16 does not hold exactly."""
    worst: float = 0.0
    """Largest relative error of a value."""

    def to_float16(self, values: Tensor, name: str) -> Tensor:
        """Convert float32 `values` of tensor `name`. Raises UnsupportedError when a value leaves float16's range."""
        out = values.to(torch.float16)
        error = (out.float() - values).abs()
        out_of_range = ~torch.isfinite(out) | ((out == 0) & (values != 0))
        if bool(out_of_range.any()):
            worst = float(values[out_of_range].flatten()[0])
            raise UnsupportedError(
                f"tensor {name}: scale {worst:.3g} is outside float16, which this format needs; export to "
                "compressed-tensors, which keeps bfloat16",
                tensor=name,
            )
        self.count += values.numel()
        self.rounded += int((error > 0).sum())
        relative = torch.where(values == 0, torch.zeros_like(error), error / values.abs())
        self.worst = max(self.worst, float(relative.max())) if values.numel() else self.worst
        return out

    def to_dict(self) -> dict[str, Any]:
        """The `scales` entry of the export's record."""
        return {"count": self.count, "rounded": self.rounded, "worst_relative_error": float(f"{self.worst:.3g}")}
