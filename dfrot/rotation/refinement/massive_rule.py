"""How massive tokens are told from common ones: a named rule and its threshold, as a setting (no torch needed).

After RMSNorm every row has the norm sqrt(d), so magnitude says nothing: a massive token is one whose energy sits
in a few channels. The published code of DFRot calls a row massive when its unrotated 4-bit error is below 8.5 at
norm 64, that is when error / norm < 0.133. In the limit that matters (a few very large channels, the others rounded
to zero) the error *is* the energy outside these channels, so the definition reads: less than 0.133^2 = 1.8 % of the
energy lies outside a few channels. In this form, the rule `energy`, it depends on neither scale, nor width, nor bit
width, and it is the default. The literal forms misfire: the absolute threshold outside width 4096, and its ratio to the
norm on small models, where an ordinary row is coarser than a Gaussian of width 4096 only by its smaller maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dfrot.errors import InputError

PUBLISHED_RATIO = 8.5 / 64.0  # DFRot's threshold over the norm of its rows at width 4096

RULES = {
    "energy": 1.0 - PUBLISHED_RATIO**2,
    "maxmedian": 1000.0,  # Sun et al. 2024: |x| >= about 1000 x median
    "quantization": PUBLISHED_RATIO,
    "published": 8.5,
}
"""Rule name -> its published threshold."""


@dataclass(frozen=True)
class MassiveRule:
    """A named rule with its threshold. `massive_tokens.massive_mask` applies it to rows [n, d].

    - `energy`: energy share of the 4 largest channels > threshold (DFRot's definition without its width; default).
    - `maxmedian`: max|x| / median|x| >= threshold sqrt(d / 4096): the definition of Sun et al. (arXiv 2402.17762).
      At equal energy share the ratio grows with sqrt(d), hence the factor, 1 at the width of their models.
    - `quantization`: 4-bit symmetric error / norm < threshold (DFRot's code, relative). Depends on the width.
    - `published`: the same error < threshold on rows of norm sqrt(d), literally. Meant for width 4096.
    """

    name: str = "energy"
    """A key of RULES."""
    threshold: float = RULES["energy"]
    """In the unit of the rule's score."""

    @classmethod
    def parse(cls, text: str) -> MassiveRule:
        """Read `energy` or `energy:0.95`. Raises InputError for unknown names and for thresholds out of range."""
        name, _, number = text.partition(":")
        if name not in RULES:
            raise InputError(f"massive rule {text!r}: unknown; choose one of {', '.join(RULES)} (or NAME:THRESHOLD)")
        try:
            threshold = float(number) if number else RULES[name]
        except ValueError:
            threshold = math.nan
        limit = 1.0 if name in ("energy", "quantization") else math.inf
        if not 0.0 < threshold < limit:
            raise InputError(f"massive rule {text!r}: the threshold has to lie between 0 and {limit:g}", limit=limit)
        return cls(name, threshold)
