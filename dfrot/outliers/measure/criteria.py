"""What counts as an outlier: the numbers, in one place, reported with every result.

Massive activations: Sun et al. (arXiv 2402.17762), an entry of the residual stream with |x| > 100 and
|x| >= 1000 median|x|. The ratio is stated for models of width 4096 and more; one channel that holds a given share of
its token's energy stands out sqrt(d) high, so the ratio is scaled by sqrt(d / 4096), 1 at their width.

Channel outliers: no paper states a number. Ours: the median over tokens of |x_c| is at least 6 times the median over
channels of that value. Both kinds are *detected* by their criterion somewhere and then *followed* everywhere: a value
that fades below a threshold and comes back is one outlier, not two.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.rotation.refinement.massive_tokens import MassiveRule

SUN_WIDTH = 4096


@dataclass(frozen=True)
class Criteria:
    """absolute, ratio: of massive activations (ratio at width 4096). channel: ratio of channel outliers. rule: which
    tokens the 4-bit errors count as massive, on RMSNorm outputs without gain (`MassiveRule.parse`)."""

    absolute: float = 100.0
    ratio: float = 1000.0
    channel: float = 6.0
    rule: str = "energy"

    def __post_init__(self) -> None:
        for name in ("absolute", "ratio", "channel"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise InputError(f"outlier criterion {name} {value!r}: a positive number is needed")
        MassiveRule.parse(self.rule)

    def ratio_at(self, width: int) -> float:
        """The ratio to the median that is asked for at a hidden size."""
        return self.ratio * math.sqrt(width / SUN_WIDTH)

    def limit(self, hidden: Tensor) -> float:
        """The smallest |x| that is massive in hidden [..., d]; its median is taken over everything given."""
        return max(self.absolute, self.ratio_at(hidden.shape[-1]) * float(median_magnitude(hidden)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def median_magnitude(x: Tensor) -> Tensor:
    """Median of |x| over everything, float32."""
    return x.abs().flatten().median()


def massive_entries(hidden: Tensor, limit: float, most: int = 4096) -> Tensor:
    """int64 [n, 2]: (position, channel) of hidden [S, d] where |x| is above `limit`, the largest first."""
    size = hidden.abs()
    where = (size > limit).nonzero()
    order = torch.argsort(size[where[:, 0], where[:, 1]], descending=True, stable=True)
    return where[order[:most]]
