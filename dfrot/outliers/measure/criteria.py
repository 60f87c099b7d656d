"""What counts as an outlier. The numbers are reported with every result.

Massive activations: Sun et al. (arXiv 2402.17762), an entry of the residual stream with |x| > 100 and
|x| >= 1000 median|x|. The ratio is stated for models of width 4096 and more. A channel that holds a given share of its
token's energy has a ratio proportional to sqrt(d), so the ratio is scaled by sqrt(d / 4096).

Channel outliers: no paper states a number. Here the median over tokens of |x_c| is at least 6 times the median over
channels of that value. Both kinds are detected by their criterion at some place and then followed at every place: a
value that falls below the threshold and rises again is one outlier, not two.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.settings import check, setting

if TYPE_CHECKING:
    from torch import Tensor

SUN_WIDTH = 4096  # hidden size for which Sun et al. state the ratio
MAX_ENTRIES = 4096  # returned by `massive_entries` unless asked for more


@dataclass(frozen=True)
class Criteria:
    """What counts as an outlier."""

    absolute: float = setting(
        100.0, above=0, below=math.inf, help="A massive activation has |x| above this value and above `ratio`."
    )
    ratio: float = setting(
        1000.0,
        above=0,
        below=math.inf,
        help="A massive activation has |x| of at least this many times the median, at width 4096 (scaled by "
        "sqrt(width / 4096)).",
    )
    channel: float = setting(
        6.0,
        above=0,
        below=math.inf,
        help="A channel outlier has a median |x| of at least this many times the median channel's.",
    )
    rule: str = setting(
        "energy",
        metavar="RULE",
        help="Rule for massive tokens in 4-bit errors, applied to RMSNorm outputs without gain; as of dfq rotate.",
    )

    def __post_init__(self) -> None:
        check(self)
        MassiveRule.parse(self.rule)

    def ratio_at(self, width: int) -> float:
        """The ratio to the median from which an entry is massive at hidden size `width`."""
        return self.ratio * math.sqrt(width / SUN_WIDTH)

    def limit(self, hidden: Tensor) -> float:
        """The |x| above which an entry of hidden [..., d] is massive. The median is taken over the whole tensor."""
        return max(self.absolute, self.ratio_at(hidden.shape[-1]) * float(median_magnitude(hidden)))

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)


def median_magnitude(x: Tensor) -> Tensor:
    """Median of |x| over the whole tensor, a scalar."""
    return x.abs().flatten().median()


def massive_entries(hidden: Tensor, limit: float, most: int = MAX_ENTRIES) -> Tensor:
    """int64 [n, 2]: (position, channel) of hidden [S, d] where |x| is above `limit`; the `most` largest, in order."""
    magnitude = hidden.abs()
    places = (magnitude > limit).nonzero()
    order = magnitude[places[:, 0], places[:, 1]].argsort(descending=True, stable=True)
    return places[order[:most]]
