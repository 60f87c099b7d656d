"""Typed access to the metadata of a GGUF file, which notices what nobody asked for.

A key of the architecture that the reader does not know may change what the model computes, so it is refused.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs.gguf.header import GGUFHeader

MAX_INTEGER = 1 << 31  # of a size; no model comes near
MAX_FLOAT32 = 3e38  # a little less: rounding must not overflow


class GGUFMetadata:
    """The metadata of one file. `arch`: its `general.architecture`; `where`: how messages name the file."""

    def __init__(self, header: GGUFHeader) -> None:
        self.header, self.where = header, str(header.file)
        self._read: set[str] = set()
        self.arch = self.text("general.architecture")

    def error(self, key: str, needed: str) -> InputError:
        """An error to raise: the value of `key` is not what is needed."""
        value = str(self.header.metadata.get(key))[:60]
        return InputError(f"{self.where}: {key} is {value!r}, {needed} is needed", file=self.header.file)

    def raw(self, key: str) -> Any:
        """The value of a key, or None. A key that begins with a dot belongs to the architecture."""
        key = self.full(key)
        self._read.add(key)
        return self.header.metadata.get(key)

    def full(self, key: str) -> str:
        """`.block_count` -> `llama.block_count`."""
        return f"{self.arch}{key}" if key.startswith(".") else key

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises InputError where it is something else, or missing without a default."""
        value = self.raw(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.error(self.full(key), "a string")
        return value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """An integer from `least` on. Raises InputError where it is something else, or missing without a default."""
        value = self.raw(key)
        value = default if value is None else value
        if type(value) is not int or not least <= value < MAX_INTEGER:
            raise self.error(self.full(key), f"an integer from {least} on")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, as the shortest decimal that is the float32 of the file.

        Raises InputError where it is something else, or missing without a default."""
        value = self.raw(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.error(self.full(key), "a number")
        return shortest(float(value))

    def flag(self, key: str, default: bool) -> bool:
        """A boolean. Raises InputError where it is something else."""
        value = self.raw(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(self.full(key), "true or false")
        return default if value is None else value

    def array(self, key: str, kind: type, length: int | None = None) -> list[Any] | None:
        """An array of `kind` (str, int or float), read in full, or None. length: what it must have.

        Raises InputError where it is something else."""
        value = self.raw(key)
        if value is None:
            return None
        complete = isinstance(value, list) and len(value) == self.header.lengths.get(self.full(key))
        if not complete or not all(type(element) is kind for element in value):
            raise self.error(self.full(key), f"an array of {kind.__name__}")
        if length is not None and len(value) != length:
            raise InputError(
                f"{self.where}: {self.full(key)} has {len(value)} elements, {length} are needed", file=self.header.file
            )
        return value  # type: ignore[no-any-return]

    def require(self, key: str, values: tuple[Any, ...], meaning: str) -> None:
        """Raise UnsupportedError where a key is there with another value than `values`."""
        value = self.raw(key)
        if value is not None and value not in values:
            raise UnsupportedError(
                f"{self.where}: {self.full(key)} is {str(value)[:60]}: {meaning}, which dfq cannot read",
                file=self.header.file,
            )

    def refuse_unread(self) -> None:
        """Raise UnsupportedError for a key of the architecture that nobody asked for."""
        unread = [key for key in self.header.metadata if key.startswith(f"{self.arch}.") and key not in self._read]
        if unread:
            raise UnsupportedError(
                f"{self.where}: key {unread[0][:80]!r} is unknown to dfq and may change what the model computes",
                file=self.header.file,
            )


def shortest(value: float) -> float:
    """The number with the fewest digits that rounds to the float32 `value`; what is no float32 stays as it is."""
    if abs(value) > MAX_FLOAT32 or _float32(value) != value:
        return value
    return next((short for digits in range(1, 10) if _float32(short := float(f"{value:.{digits}g}")) == value), value)


def _float32(value: float) -> float:
    """`value` rounded to float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
