"""schemes"""

from __future__ import annotations

from dfrot.errors import UnsupportedError
from dfrot.quant.scheme import QuantScheme

SCHEMES = {"w4": QuantScheme.parse("w4a16-g64"), "w8": QuantScheme.parse("w8a16")}


def scheme_of(name: str) -> QuantScheme:
    """`w4` (groups of 64) or `w8` (per row)."""
    if name not in SCHEMES:
        raise UnsupportedError(f"--quantize-draft {name}: use {' or '.join(SCHEMES)}")
    return SCHEMES[name]
