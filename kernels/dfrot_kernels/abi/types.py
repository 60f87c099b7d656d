"""What a C interface is described with: functions with named arguments, structs with named fields, enums."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

WORD = 8  # bytes of every argument and field: integers as int64, floats as double, addresses


@dataclass(frozen=True)
class Field:
    """One argument of a function, or one field of a struct.

    type: as C writes it, e.g. `const uint8_t*`; name; nullable: a pointer that may be null.
    """

    type: str
    name: str
    nullable: bool = False

    @property
    def pointer(self) -> bool:
        """Whether the field is an address."""
        return self.type.endswith("*")

    @property
    def nested(self) -> str | None:
        """The struct that the field holds (not: points to), if it holds one."""
        return self.type.removeprefix("struct ") if self.type.startswith("struct ") and not self.pointer else None

    def declaration(self) -> str:
        """`int64_t n`; `const uint8_t* zero?` where the pointer may be null."""
        return f"{self.type} {self.name}{'?' if self.nullable else ''}"


def fields(declarations: str) -> tuple[Field, ...]:
    """Fields from C declarations, `const uint8_t* codes, int64_t n, const uint8_t* zero?`; `?`: may be null."""
    parsed = []
    for declaration in " ".join(declarations.split()).split(", "):
        kind, _, name = declaration.rpartition(" ")
        parsed.append(Field(kind, name.removesuffix("?"), name.endswith("?")))
    return tuple(parsed)


@dataclass(frozen=True)
class Struct:
    """A C struct whose fields are words, or other structs of words.

    name: its tag in C; fields: in the order in memory; doc: what the header says above it.
    """

    name: str
    fields: tuple[Field, ...]
    doc: str


@dataclass(frozen=True)
class Function:
    """A C function `int NAME(const struct NAME_args*)`.

    name: its symbol; arguments: the fields of its struct; doc: what the header says above it.
    """

    name: str
    arguments: tuple[Field, ...]
    doc: str

    @property
    def struct(self) -> Struct:
        """The struct that holds the arguments of one call."""
        return Struct(f"{self.name}_args", self.arguments, self.doc)


@dataclass(frozen=True)
class Enum:
    """Numbers with names. values: C name -> number; doc: what the header says above it."""

    name: str
    values: Mapping[str, int]
    doc: str


def function(name: str, arguments: str, doc: str) -> Function:
    """A Function from the declarations of its arguments; the largest number of threads comes last everywhere."""
    return Function(name, fields(arguments + ", int64_t threads"), doc)


def float_bits(value: float) -> int:
    """The bits of a float64 as int64."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
