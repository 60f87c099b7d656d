"""The schemes in which drafts are quantized."""

from __future__ import annotations

from dfrot.errors import UnsupportedError
from dfrot.quant.scheme import QuantScheme

SCHEMES = {"w4": QuantScheme.parse("w4a16-g64"), "w8": QuantScheme.parse("w8a16")}


def scheme_of(name: str) -> QuantScheme:
    """`w4` (4 bits in groups of 64) or `w8` (8 bits, one scale per row). Raises UnsupportedError for another name."""
    if name not in SCHEMES:
        raise UnsupportedError(f"`quantize` {name}: use {' or '.join(SCHEMES)}", field="quantize")
    return SCHEMES[name]
