"""Reading the header of a GGUF file: metadata and tensor table, never a weight.

The file may be damaged or hostile: every count and length is compared with the bytes that are left before anything is
allocated, and names, alignment and places of tensors are checked. The header is mapped, so that a table of 150,000
tokens that nobody asks for takes no memory.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dfrot.errors import InputError

MAGIC = b"GGUF"
MAX_HEADER = 512 << 20  # bytes
KEPT_ELEMENTS = 64  # elements of an array that are kept; the rest is only counted
MAX_ELEMENTS = 1 << 22  # of an array that is asked for in full
MAX_TENSORS, MAX_KEYS = 1 << 17, 1 << 16
MAX_DIMS = 4  # of a ggml tensor
MAX_SIZE = 1 << 48  # of a dimension: bounds the arithmetic
DEFAULT_ALIGNMENT = 32
# the least that an entry of the tensor table and an entry of the metadata take, in bytes
MIN_TENSOR_ENTRY, MIN_METADATA_ENTRY = 24, 12
# struct formats of ggml's scalar types
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# ggml type -> name, elements per block, bytes per block
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}


@dataclass(frozen=True)
class GGUFTensor:
    """One row of the tensor table."""

    name: str
    """Name in the file."""
    type: str
    """Name of its ggml type, for instance `Q4_0`; `type 99` for one that is not in the table."""
    shape: tuple[int, ...]
    """Rows first, as everywhere in dfq (the file stores them last)."""
    nbytes: int
    """Bytes of its data."""
    file: Path
    """The file that holds it."""
    start: int
    """Absolute byte offset of its data in the file."""


@dataclass
class GGUFHeader:
    """What a GGUF file says before its data."""

    file: Path
    """The file."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Scalars and strings; of arrays the first elements, or all that were asked for."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Lengths of the arrays."""
    tensors: list[GGUFTensor] = field(default_factory=list)
    """The tensor table, in order."""


class _Reader:
    """Reads little-endian values and raises InputError where the file ends too early."""

    def __init__(self, data: mmap.mmap, file: Path) -> None:
        self.data, self.file, self.size, self.position = data, file, len(data), len(MAGIC)
        self.limit = min(self.size, MAX_HEADER)

    def error(self, what: str) -> InputError:
        """An error to raise: `what` is wrong at the current position."""
        message = f"{self.file}: {what} at byte {self.position}; the file is damaged, fetch it again"
        return InputError(message, file=self.file)

    def require(self, count: int) -> None:
        """Raise unless `count` more bytes are there."""
        if self.position + count > self.limit:
            raise self.error(f"the header promises {count} more bytes than there are")

    def scalar(self, format: str) -> Any:
        """One value of a struct format."""
        return self.scalars(format, 1)[0]

    def scalars(self, format: str, count: int) -> tuple[Any, ...]:
        """`count` values of a struct format."""
        size = count * struct.calcsize("<" + format)
        self.require(size)
        values = struct.unpack_from(f"<{count}{format}", self.data, self.position)
        self.position += size
        return values

    def text(self) -> str:
        """A string with its length before it."""
        length = self.scalar("Q")
        self.require(length)
        raw = self.data[self.position : self.position + length]
        try:
            value = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error("a string is not UTF-8") from None
        self.position += length
        return value

    def value(self, kind: int, header: GGUFHeader, key: str, whole: bool) -> Any:
        """The value of metadata `key` of ggml type `kind`. whole: keep all elements of an array."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.error(f"key {key[:60]!r} has a value of unknown type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner not in _SCALARS and inner != _STRING:
            raise self.error(f"key {key[:60]!r} has elements of unknown type {inner}")
        smallest = struct.calcsize("<" + _SCALARS[inner]) if inner in _SCALARS else 8
        self.require(count * smallest)
        if whole and count > MAX_ELEMENTS:
            raise self.error(f"key {key[:60]!r} has {count} elements, {MAX_ELEMENTS} are read at most")
        header.lengths[key] = count
        kept = count if whole else min(count, KEPT_ELEMENTS)
        if inner in _SCALARS:
            values = list(self.scalars(_SCALARS[inner], kept))
            self.position += (count - kept) * smallest
            return values
        texts = [self.text() for _ in range(kept)]
        for _ in range(count - kept):
            length = self.scalar("Q")
            self.require(length)
            self.position += length
        return texts


def read_header(file: Path, arrays: Collection[str] = ()) -> GGUFHeader:
    """The header of a GGUF file (versions 2 and 3, little-endian).

    arrays: keys whose arrays are read in full. Raises InputError in one line for a damaged file."""
    try:
        with file.open("rb") as handle:
            if handle.read(4) != MAGIC:
                raise InputError(f"{file}: is not a GGUF file", file=file)
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Reader(data, file), arrays)
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror}); check the file", file=file) from None


def _read(reader: _Reader, arrays: Collection[str]) -> GGUFHeader:
    """Everything behind the magic number."""
    header = GGUFHeader(reader.file)
    version = reader.scalar("I")
    if version not in (2, 3):
        raise reader.error(f"version {version} is unknown")
    tensors, keys = reader.scalar("Q"), reader.scalar("Q")
    reader.require(MIN_TENSOR_ENTRY * tensors + MIN_METADATA_ENTRY * keys)
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise reader.error(f"{tensors} tensors and {keys} keys are more than any model has")
    for _ in range(keys):
        key = reader.text()
        if key in header.metadata:
            raise reader.error(f"key {key[:60]!r} is there twice")
        header.metadata[key] = reader.value(reader.scalar("I"), header, key, key in arrays)
    entries = [_tensor(reader) for _ in range(tensors)]
    align = header.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(align) is not int or not 0 < align <= 1 << 16:
        raise reader.error(f"alignment {str(align)[:20]} is not a number of bytes")
    begin = -(-reader.position // align) * align  # data starts aligned behind the header
    header.tensors = _placed(reader, entries, begin, align)
    return header


def _tensor(reader: _Reader) -> GGUFTensor:
    """One row of the tensor table; its start is still relative to the data."""
    name, dims = reader.text(), reader.scalar("I")
    if dims > MAX_DIMS:
        raise reader.error(f"tensor {name[:60]!r} has {dims} dimensions")
    shape = tuple(reader.scalars("Q", dims))[::-1]
    kind, offset = reader.scalar("I"), reader.scalar("Q")
    known, block, nbytes = TYPES.get(kind, (f"type {kind}", 1, 0))
    if any(size >= MAX_SIZE for size in shape):
        raise reader.error(f"tensor {name[:60]!r}: shape {list(shape)} is larger than any tensor")
    if shape and shape[-1] % block:
        raise reader.error(f"tensor {name[:60]!r}: {shape[-1]} columns are not whole blocks of {known}")
    return GGUFTensor(name, known, shape, math.prod(shape) // block * nbytes, reader.file, offset)


def _placed(reader: _Reader, entries: list[GGUFTensor], begin: int, align: int) -> list[GGUFTensor]:
    """The tensors with absolute offsets; none overlaps another, lies askew or beyond the end."""
    if len({entry.name for entry in entries}) < len(entries):
        raise reader.error("the name of a tensor is there twice")
    end, before = 0, ""
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.nbytes)):
        if entry.start % align or entry.start < end:
            where = f"overlaps {before[:60]!r}" if entry.start < end else "is not aligned"
            raise reader.error(f"tensor {entry.name[:60]!r} {where}")
        end, before = entry.start + entry.nbytes, entry.name
        if begin + end > reader.size:
            raise reader.error(f"tensor {entry.name[:60]!r} lies beyond the end")
    return [replace(entry, start=begin + entry.start) for entry in entries]
