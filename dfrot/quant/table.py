"""TableScheme: how the embedding or the head is stored, as pure data."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from dfrot.errors import UnsupportedError
from dfrot.field_types import check_types
from dfrot.quant.scheme import FULL, NARROW

_NAME = re.compile(r"(\d+)(?:-g(\d+))?(-asym)?(?:\+(\d+))?")
BITS = (FULL, 8, 4)
GROUP_OF_4_BITS = 32
"""Columns that share a scale where 4 bits are asked for without a group: one scale per row costs twice the error."""


@dataclass(frozen=True)
class TableScheme:
    """Bits and grid of the embedding's or the head's weight [vocabulary, hidden]. 16 bits means: left in the model's
    dtype. Activations are never quantized for it."""

    bits: int = FULL
    """Bits of a weight."""
    group: int = 0
    """Columns that share a scale; 0: one scale per row (token)."""
    symmetric: bool = True
    """No zero codes."""
    second_rows: int = 0
    """A head of 4 bits: the most frequent tokens that have a second row of codes for what the first leaves."""

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UnsupportedError(f"{self.bits} bits for a table are not supported; use 16, 8 or 4")
        if not 0 <= self.group < 2**31 or self.group % 8:
            raise UnsupportedError(f"group size {self.group} of a table is not a multiple of 8")
        if self.second_rows < 0 or (self.second_rows and self.bits != NARROW):
            raise UnsupportedError(f"{self.second_rows} second rows: only tables of {NARROW} bits have some")

    @classmethod
    def parse(cls, text: str | int) -> TableScheme:
        """Read a name: `16`, `8` (one scale per row), `8-g64`, `4` (groups of 32), `4-g0` (per row), `4-g64-asym`,
        `4+256` (with 256 second rows). Raises UnsupportedError for one that cannot be read, or for bits that are not
        supported."""
        match = _NAME.fullmatch(str(text).strip().lower())
        if not match or (int(match[1]) == FULL and (match[2] or match[3] or match[4])):
            raise UnsupportedError(f"{text!r} is not understood; write it like 16, 8, 4, 8-g64, 4-g64-asym or 4+256")
        bits = int(match[1])
        group = int(match[2]) if match[2] else GROUP_OF_4_BITS if bits == 4 else 0
        return cls(bits, group, match[3] is None, int(match[4] or 0))

    @property
    def quantized(self) -> bool:
        """Whether the table is stored as integers."""
        return self.bits != FULL

    @property
    def name(self) -> str:
        """The canonical short name; `parse(name)` gives the scheme back."""
        default = GROUP_OF_4_BITS if self.bits == 4 else 0
        group = f"-g{self.group}" if self.group != default else ""
        second = f"+{self.second_rows}" if self.second_rows else ""
        return f"{self.bits}{group}{'' if self.symmetric else '-asym'}{second}"

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain JSON; without `second_rows` where there are none, as older versions wrote it."""
        value = asdict(self)
        if not self.second_rows:
            del value["second_rows"]
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> TableScheme:
        """The inverse of `to_dict`. Raises UnsupportedError for an unknown key, InputError, TypeError or KeyError for a
        value that is missing or of a wrong type."""
        if unknown := set(value) - set(cls.__dataclass_fields__):
            raise UnsupportedError(f"scheme of a table: unknown keys {sorted(unknown)}; written by a newer dfq?")
        table = cls(**{**value, "bits": value["bits"]})
        check_types(table, "scheme of a table")
        return table
