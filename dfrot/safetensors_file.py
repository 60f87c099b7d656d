"""Reading safetensors files, one tensor (or some rows of it) at a time.

Every byte is hostile until checked: a header may state wrong sizes and offsets, a file may be cut short, a weight may
be NaN. Tensors are read with plain file reads, not mapped, so that resident memory is what the caller holds and
nothing else.
"""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError, UnsupportedError

_NUMBERS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_QUANTIZED = {  # by the names of torch's dtypes, some of which are newer than the oldest torch that dfq supports
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}
DTYPES: dict[str, torch.dtype] = {
    **_NUMBERS,
    **{name: getattr(torch, dtype) for name, dtype in _QUANTIZED.items() if hasattr(torch, dtype)},
}
FOREIGN_DTYPES = {"F4": "FP4", "F6_E2M3": "FP6", "F6_E3M2": "FP6", "F8_E8M0": "block scales", "C64": "complex numbers"}
"""What the dtypes hold that the safetensors format has and torch cannot hold."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # the limit of the safetensors library
CHECK_CHUNK = 1 << 22  # elements per NaN check: bounds its temporary
STRETCH = 1 << 23  # bytes that are worth a thread of their own
MAX_DIMENSION = 2**48  # of a tensor: bounds the arithmetic on sizes; no real tensor comes near


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor is stored."""

    name: str
    """Its name in the file."""
    file: Path
    """The safetensors file."""
    dtype: torch.dtype
    """The dtype that it is read in, normally the stored one."""
    shape: tuple[int, ...]
    """The stored shape."""
    start: int
    """Absolute byte offset of its data in the file."""
    end: int
    """Absolute byte offset behind its data."""
    cast_from: torch.dtype | None = None
    """The stored dtype where `dtype` is another one, that it is read in; None: they are the same."""

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the bytes in the file."""
        return self.cast_from or self.dtype


def require(condition: bool, message: str) -> None:
    """Raise InputError unless `condition` holds."""
    if not condition:
        raise InputError(message)


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file, by name, its header checked.

    Raises InputError for a damaged file, UnsupportedError for a dtype that torch cannot hold."""
    header, base, size = _parse(file)
    entries = {name: _entry(file, name, value, base, size) for name, value in header.items() if name != "__metadata__"}
    _check_layout(file, list(entries.values()), base, size)
    return entries


def read_metadata(file: Path) -> dict[str, str]:
    """The free-form strings in the header of a safetensors file. Raises InputError when they are no strings."""
    metadata = _parse(file)[0].get("__metadata__", {})
    require(
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()),
        f"{file}: __metadata__ is not a table of strings; copy the file again",
    )
    return dict(metadata)


def _parse(file: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON header, the offset where data begins, the size of the file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            require(size >= 8, f"{file}: truncated ({size} bytes); copy the file again")
            require(
                0 < length <= min(MAX_HEADER, size - 8),
                f"{file}: header of {length} bytes does not fit the file ({size} bytes); copy the file again",
            )
            raw = handle.read(length)
    except FileNotFoundError:
        raise InputError(f"{file}: shard is missing; copy the file again") from None
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror}); check the file") from None
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, a number of thousands of digits
        raise InputError(f"{file}: the safetensors header is not JSON; copy the file again") from None
    require(isinstance(header, dict), f"{file}: the safetensors header is not an object")
    return header, 8 + length, size


def _entry(file: Path, name: str, value: Any, base: int, size: int) -> TensorEntry:
    """One entry of a header, checked. base: offset where data begins; size: bytes of the file."""
    where = f"{file}: tensor {name}"
    require(isinstance(value, dict), f"{where}: header entry is not an object")
    dtype = DTYPES.get(value.get("dtype")) if isinstance(value.get("dtype"), str) else None
    if dtype is None:
        raise _unknown_dtype(file, name, value.get("dtype"))
    shape, offsets = value.get("shape"), value.get("data_offsets")
    require(
        isinstance(shape, list) and all(type(n) is int and 0 <= n < MAX_DIMENSION for n in shape),
        f"{where}: shape {shape!r} is not a list of sizes",
    )
    require(
        isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets),
        f"{where}: data_offsets {offsets!r} are not two integers",
    )
    start, end = base + offsets[0], base + offsets[1]
    needed = math.prod(shape) * dtype.itemsize
    require(
        base <= start <= end and end - start == needed,
        f"{where}: offsets {offsets} do not hold shape {shape} of {value['dtype']} ({needed} bytes)",
    )
    require(end <= size, f"{where}: truncated file, data ends at byte {end} of {size}; copy the file again")
    return TensorEntry(name, file, dtype, tuple(shape), start, end)


def _unknown_dtype(file: Path, name: str, dtype: Any) -> UnsupportedError:
    where = f"{file}: tensor {name}"
    if isinstance(dtype, str) and dtype in FOREIGN_DTYPES:
        message = (
            f"{where}: holds {FOREIGN_DTYPES[dtype]} ({dtype}), which dfq does not read; start from the 16-bit model"
        )
    else:
        message = f"{where}: dtype {dtype!r} is not supported; convert it to one of {', '.join(_NUMBERS)}"
    return UnsupportedError(message, file=file, tensor=name)


def _check_layout(file: Path, entries: list[TensorEntry], base: int, size: int) -> None:
    """The data section must be covered exactly once: no overlap, no hole, no tail."""
    position = base
    for entry in sorted(entries, key=lambda e: (e.start, e.end)):
        require(entry.start == position, f"{file}: tensor {entry.name}: data overlaps or leaves a hole")
        position = entry.end
    require(position == size, f"{file}: {size - position} stray bytes after the last tensor; copy the file again")


def read_tensor(entry: TensorEntry) -> Tensor:
    """The whole tensor, checked for NaN and Inf."""
    return read_bytes(entry, entry.start, entry.end).reshape(entry.shape)


def same_bytes(first: TensorEntry, second: TensorEntry) -> bool:
    """Whether two stored tensors are equal in dtype, shape and bytes."""
    if (first.stored, first.shape) != (second.stored, second.shape):
        return False
    with first.file.open("rb") as one, second.file.open("rb") as other:
        one.seek(first.start)
        other.seek(second.start)
        for begin in range(0, first.end - first.start, CHECK_CHUNK):
            size = min(CHECK_CHUNK, first.end - first.start - begin)
            if one.read(size) != other.read(size):
                return False
    return True


def _fill(entry: TensorEntry, view: memoryview, start: int) -> None:
    """Read the bytes of the file from `start` on into `view`, a large one by as many threads as torch uses: a single
    one is slower than memory where the file is cached, and than the disk where it is not."""
    parts = max(1, min(torch.get_num_threads(), len(view) // STRETCH))
    cuts = [len(view) * part // parts for part in range(parts + 1)]

    def read(begin: int, end: int) -> None:
        while begin < end:
            count = os.preadv(handle.fileno(), [view[begin:end]], start + begin)
            require(bool(count), f"{entry.file}: tensor {entry.name}: truncated while reading")
            begin += count

    with entry.file.open("rb", buffering=0) as handle:
        if parts == 1:
            read(0, len(view))
        else:
            with ThreadPoolExecutor(parts) as threads:
                list(threads.map(read, cuts, cuts[1:]))


def read_bytes(entry: TensorEntry, start: int, end: int) -> Tensor:
    """The elements in bytes start .. end of the file, one-dimensional, checked for NaN and Inf."""
    if end <= start:
        return torch.empty(0, dtype=entry.dtype)
    stored = entry.stored
    # torch's own allocation: aligned, so that no sum depends on the address of a tensor
    tensor = torch.empty((end - start) // stored.itemsize, dtype=stored)
    _fill(entry, tensor.view(torch.uint8).numpy().data, start)
    if stored.is_floating_point:
        for chunk in torch.split(tensor, CHECK_CHUNK):
            # max() propagates NaN and needs no mask of the whole tensor; torch compares no 8-bit floats
            extreme = (chunk if stored.itemsize > 1 else chunk.float()).abs().max()
            require(
                bool(torch.isfinite(extreme)),
                f"{entry.file}: tensor {entry.name}: holds NaN or Inf; the weights are damaged, fetch them again",
            )
    return tensor.to(entry.dtype)
