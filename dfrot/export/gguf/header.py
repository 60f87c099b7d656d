"""Reading the header of a GGUF file: metadata and tensor table, never a weight.

The file may be damaged or hostile: every count and length is compared with the bytes that are left before anything is
allocated.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from dfrot.errors import InputError

MAGIC = b"GGUF"
MAX_HEADER = 512 << 20  # bytes
KEPT_ELEMENTS = 64  # elements of an array that are kept; the rest is only counted
MAX_DIMS = 4  # of a ggml tensor
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
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
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
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


@dataclass(frozen=True)
class GGUFTensor:
    """One row of the tensor table."""

    name: str
    """Name in the file."""
    type: str
    """Name of its ggml type, for instance `Q4_0`."""
    shape: tuple[int, ...]
    """Rows first, as everywhere in dfq (the file stores them last)."""
    nbytes: int
    """Bytes of its data."""


@dataclass
class GGUFHeader:
    """What a GGUF file says before its data."""

    metadata: dict[str, Any] = field(default_factory=dict)
    """Scalars, strings, and the first elements of arrays."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Lengths of the arrays."""
    tensors: list[GGUFTensor] = field(default_factory=list)
    """The tensor table, in order."""


class _Reader:
    """Reads little-endian values and raises InputError where the file ends too early."""

    def __init__(self, handle: BinaryIO, file: Path, size: int) -> None:
        self.handle, self.file, self.size = handle, file, size

    def error(self, what: str) -> InputError:
        """An error to raise: `what` is wrong at the current position."""
        message = f"{self.file}: {what} at byte {self.handle.tell()}; the file is damaged, fetch it again"
        return InputError(message, file=self.file)

    def require(self, count: int) -> None:
        """Raise unless `count` more bytes are there."""
        if self.handle.tell() + count > min(self.size, MAX_HEADER):
            raise self.error(f"the header promises {count} more bytes than there are")

    def scalar(self, format: str) -> Any:
        """One value of a struct format."""
        size = struct.calcsize("<" + format)
        self.require(size)
        return struct.unpack("<" + format, self.handle.read(size))[0]

    def text(self) -> str:
        """A string with its length before it."""
        length = self.scalar("Q")
        self.require(length)
        return self.handle.read(length).decode("utf-8", errors="replace")

    def value(self, kind: int, header: GGUFHeader, key: str, nested: bool = False) -> Any:
        """The value of metadata `key` of ggml type `kind`; `nested`: an element of an array."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or nested:
            raise self.error(f"key {key[:60]!r} has a value of unknown type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        smallest = struct.calcsize("<" + _SCALARS[inner]) if inner in _SCALARS else 8
        self.require(count * smallest)
        header.lengths[key] = count
        kept = [self.value(inner, header, key, True) for _ in range(min(count, KEPT_ELEMENTS))]
        if inner in _SCALARS:
            self.handle.seek((count - len(kept)) * smallest, 1)
        else:
            for _ in range(count - len(kept)):
                length = self.scalar("Q")
                self.require(length)
                self.handle.seek(length, 1)
        return kept


def read_header(file: Path) -> GGUFHeader:
    """The header of a GGUF file (versions 2 and 3, little-endian). Raises InputError in one line."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            if handle.read(4) != MAGIC:
                raise InputError(f"{file}: is not a GGUF file", file=file)
            return _read(_Reader(handle, file, size))
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror}); check the file", file=file) from None


def _read(reader: _Reader) -> GGUFHeader:
    """Everything behind the magic number."""
    header = GGUFHeader()
    version = reader.scalar("I")
    if version not in (2, 3):
        raise reader.error(f"version {version} is unknown")
    tensors, keys = reader.scalar("Q"), reader.scalar("Q")
    reader.require(MIN_TENSOR_ENTRY * tensors + MIN_METADATA_ENTRY * keys)
    for _ in range(keys):
        key = reader.text()
        header.metadata[key] = reader.value(reader.scalar("I"), header, key)
    ends = []
    for _ in range(tensors):
        tensor, offset = _tensor(reader)
        header.tensors.append(tensor)
        ends.append((offset + tensor.nbytes, tensor.name))
    align = header.metadata.get("general.alignment", 32)
    if type(align) is not int or not 0 < align <= 1 << 16:
        raise reader.error(f"alignment {str(align)[:20]} is not a number of bytes")
    begin = -(-reader.handle.tell() // align) * align  # data starts aligned behind the header
    if ends and begin + max(ends)[0] > reader.size:
        raise reader.error(f"tensor {max(ends)[1][:60]!r} lies beyond the end")
    return header


def _tensor(reader: _Reader) -> tuple[GGUFTensor, int]:
    """One row of the tensor table, and its offset in the data."""
    name, dims = reader.text(), reader.scalar("I")
    if dims > MAX_DIMS:
        raise reader.error(f"tensor {name[:60]!r} has {dims} dimensions")
    shape = tuple(reader.scalar("Q") for _ in range(dims))[::-1]
    kind, offset = reader.scalar("I"), reader.scalar("Q")
    known, block, nbytes = TYPES.get(kind, (f"type {kind}", 1, 0))
    count = math.prod(shape)
    if shape and shape[-1] % block:
        raise reader.error(f"tensor {name[:60]!r}: {shape[-1]} columns are not whole blocks of {known}")
    return GGUFTensor(name, known, shape, count // block * nbytes), offset
