"""Which tokens carry massive activations, decided on RMSNorm outputs.

After RMSNorm every row has the norm sqrt(d), so magnitude says nothing: a massive token is one whose energy sits
in a few channels. The published code of DFRot calls a row massive when its unrotated 4-bit error is below 8.5 at
norm 64, that is when error / norm < 0.133. In the limit that matters (a few spikes, the rest rounded to zero) the
error *is* the energy outside the spikes, so the definition reads: less than 0.133^2 = 1.8 % of the energy lies
outside a few channels. In this form, the rule `energy`, it has neither a scale, nor a width, nor a bit width in it,
and it is the default. The literal forms misfire: the absolute threshold outside width 4096, and its ratio to the
norm on small models, where an ordinary row is coarser than a Gaussian of width 4096 only by its smaller maximum.

Every rule here is a function of x / |x| alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfrot.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED_RATIO = 8.5 / 64.0  # DFRot's threshold over the norm of its rows at width 4096
SPIKES = 4  # massive tokens hold their energy in 1-4 channels (DFRot, section 3.2)
SUN_RATIO, SUN_WIDTH = 1000.0, 4096  # Sun et al. 2024: |x| >= about 1000 x median, stated for width 4096

RULES = {
    "energy": 1.0 - PUBLISHED_RATIO**2,
    "maxmedian": SUN_RATIO,
    "quantization": PUBLISHED_RATIO,
    "published": 8.5,
}
"""Rule name -> its published threshold."""


@dataclass(frozen=True)
class MassiveRule:
    """A named rule with its threshold.

    - `energy`: energy share of the 4 largest channels > threshold (DFRot's definition without its width; default).
    - `maxmedian`: max|x| / median|x| >= threshold sqrt(d / 4096): the definition of Sun et al. (arXiv 2402.17762).
      At equal energy share the ratio grows with sqrt(d), hence the factor, 1 at the width of their models.
    - `quantization`: 4-bit symmetric error / norm < threshold (DFRot's code, relative). Depends on the width.
    - `published`: the same error < threshold on rows of norm sqrt(d), literally. Meant for width 4096.
    """

    name: str = "energy"
    threshold: float = RULES["energy"]

    @classmethod
    def parse(cls, text: str) -> MassiveRule:
        """`energy` or `energy:0.95`. Raises InputError for unknown names and thresholds that are no numbers."""
        name, _, number = text.partition(":")
        if name not in RULES:
            raise InputError(f"massive rule {text!r}: unknown; choose one of {', '.join(RULES)} (or NAME:THRESHOLD)")
        try:
            threshold = float(number) if number else RULES[name]
        except ValueError:
            threshold = math.nan
        limit = 1.0 if name in ("energy", "quantization") else math.inf
        if not 0.0 < threshold < limit:
            raise InputError(f"massive rule {text!r}: the threshold has to lie between 0 and {limit:g}")
        return cls(name, threshold)

    def score(self, rows: Tensor) -> Tensor:
        """The measured quantity per row [n] float32, for rows [n, d] of any positive scale."""
        import torch  # here, not above: the rules are settings, which are read without torch

        from dfrot.rotation.refinement.row_grid import TokenQuantizer

        width = rows.shape[1]
        rows = rows.float()
        norm: Tensor = rows.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        if self.name == "energy":
            top = rows.abs().topk(min(SPIKES, width), dim=1).values
            share: Tensor = top.square().sum(1) / norm.square()
            return share
        if self.name == "maxmedian":
            size = rows.abs()
            median = size.median(dim=1).values.clamp_min(torch.finfo(torch.float32).tiny)
            peak: Tensor = size.amax(1) / median
            return peak
        ratio: Tensor = TokenQuantizer(4, True).error(rows).sqrt().float() / norm
        return ratio * math.sqrt(width) if self.name == "published" else ratio

    def mask(self, rows: Tensor) -> Tensor:
        """bool [n]: which of rows [n, d] are massive. A row of zeros never is."""
        score = self.score(rows)
        if self.name == "energy":
            found = score > self.threshold
        elif self.name == "maxmedian":
            found = score >= self.threshold * math.sqrt(rows.shape[1] / SUN_WIDTH)
        else:
            found = score < self.threshold
        return found & (rows != 0).any(1)
