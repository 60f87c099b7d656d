"""The schemes in which drafts are quantized."""

from __future__ import annotations

from dfrot.errors import UnsupportedError
from dfrot.quant.scheme import QuantScheme

SCHEMES = {"w4": QuantScheme.parse("w4a16-g64"), "w8": QuantScheme.parse("w8a16")}


SMALL_HEAD = 4096
"""The most tokens of a draft vocabulary whose head stays in 8 bits beside blocks in 4: rounding a head to 4 bits costs
seven times the acceptance that rounding the blocks does (docs/results/drafts.md), and so few rows are read quickly."""


def head_scheme(scheme: str, wanted: str, draft_vocab: int) -> str:
    """The scheme of the head of a draft, its own or its copy of the target's, if it is not that of the blocks; else
    empty. scheme: of the blocks, empty for none. wanted: `auto`, `w4` or `w8`. draft_vocab: tokens that the draft can
    propose, 0 for all of the target's."""
    small = 0 < draft_vocab <= SMALL_HEAD
    return "w8" if scheme == "w4" and (wanted == "w8" or (wanted == "auto" and small)) else ""


def scheme_of(name: str) -> QuantScheme:
    """`w4` (4 bits in groups of 64) or `w8` (8 bits, one scale per row). Raises UnsupportedError for another name."""
    if name not in SCHEMES:
        raise UnsupportedError(f"`quantize` {name}: use {' or '.join(SCHEMES)}", field="quantize")
    return SCHEMES[name]
