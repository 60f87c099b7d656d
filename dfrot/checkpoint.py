"""Reading a Hugging Face checkpoint folder, one tensor (or some rows of it) at a time.

Every byte is hostile until checked: the index may point outside the folder, a header may state wrong sizes and
offsets, a shard may be cut short, a weight may be NaN. Tensors are read with plain file reads, not mapped, so
that resident memory is what the caller holds and nothing else.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError, UnsupportedError
from dfrot.files import digest_bytes, read_json

DTYPES = {
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
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CODE_DTYPES = {  # of torch, by name: some are newer than the oldest torch that dfq supports
    name: getattr(torch, dtype)
    for name, dtype in {
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
    }.items()
    if hasattr(torch, dtype)
}
"""Dtypes of codes and scales that are read to be dequantized, and never written."""
MAX_HEADER = 100_000_000  # the limit of the safetensors library
CHECK_CHUNK = 1 << 22  # elements per NaN check: bounds its temporary
MAX_DIMENSION = 2**48  # of a tensor: bounds the arithmetic on sizes; no real tensor comes near
SAMPLE_BYTES = 4096  # per place, of the three in each tensor that a digest reads


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor is stored."""

    name: str
    """Its name in the file."""
    file: Path
    """The safetensors file."""
    dtype: torch.dtype
    """The stored dtype."""
    shape: tuple[int, ...]
    """The stored shape."""
    start: int
    """Absolute byte offset of its data in the file."""
    end: int
    """Absolute byte offset behind its data."""


def _require(condition: bool, message: str) -> None:
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
    _require(
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
            _require(size >= 8, f"{file}: truncated ({size} bytes); copy the file again")
            _require(
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
    _require(isinstance(header, dict), f"{file}: the safetensors header is not an object")
    return header, 8 + length, size


def _entry(file: Path, name: str, value: Any, base: int, size: int) -> TensorEntry:
    """One entry of a header, checked. base: offset where data begins; size: bytes of the file."""
    where = f"{file}: tensor {name}"
    _require(isinstance(value, dict), f"{where}: header entry is not an object")
    dtype = (DTYPES | CODE_DTYPES).get(value.get("dtype")) if isinstance(value.get("dtype"), str) else None
    if dtype is None:
        known = ", ".join(DTYPES)
        raise UnsupportedError(f"{where}: dtype {value.get('dtype')!r} is not supported; convert it to one of {known}")
    shape, offsets = value.get("shape"), value.get("data_offsets")
    _require(
        isinstance(shape, list) and all(type(n) is int and 0 <= n < MAX_DIMENSION for n in shape),
        f"{where}: shape {shape!r} is not a list of sizes",
    )
    _require(
        isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets),
        f"{where}: data_offsets {offsets!r} are not two integers",
    )
    start, end = base + offsets[0], base + offsets[1]
    needed = math.prod(shape) * dtype.itemsize
    _require(
        base <= start <= end and end - start == needed,
        f"{where}: offsets {offsets} do not hold shape {shape} of {value['dtype']} ({needed} bytes)",
    )
    _require(end <= size, f"{where}: truncated file, data ends at byte {end} of {size}; copy the file again")
    return TensorEntry(name, file, dtype, tuple(shape), start, end)


def _check_layout(file: Path, entries: list[TensorEntry], base: int, size: int) -> None:
    """The data section must be covered exactly once: no overlap, no hole, no tail."""
    position = base
    for entry in sorted(entries, key=lambda e: (e.start, e.end)):
        _require(entry.start == position, f"{file}: tensor {entry.name}: data overlaps or leaves a hole")
        position = entry.end
    _require(position == size, f"{file}: {size - position} stray bytes after the last tensor; copy the file again")


def read_tensor(entry: TensorEntry) -> Tensor:
    """The whole tensor in its stored dtype, checked for NaN and Inf."""
    return _read(entry, entry.start, entry.end).reshape(entry.shape)


def _read(entry: TensorEntry, start: int, end: int) -> Tensor:
    """The elements in bytes start .. end of the file, one-dimensional, checked for NaN and Inf."""
    if end <= start:
        return torch.empty(0, dtype=entry.dtype)
    # torch's own allocation: aligned, so that no sum depends on the address of a tensor
    tensor = torch.empty((end - start) // entry.dtype.itemsize, dtype=entry.dtype)
    with entry.file.open("rb", buffering=0) as handle:
        handle.seek(start)
        view, done = tensor.view(torch.uint8).numpy().data, 0
        while done < len(view):
            count = handle.readinto(view[done:])
            _require(bool(count), f"{entry.file}: tensor {entry.name}: truncated while reading")
            done += count or 0
    if entry.dtype.is_floating_point:
        for chunk in torch.split(tensor, CHECK_CHUNK):
            # max() propagates NaN and needs no mask of the whole tensor; FP8 has no arithmetic of its own
            extreme = (chunk.float() if chunk.dtype.itemsize == 1 else chunk).abs().max()
            _require(
                bool(torch.isfinite(extreme)),
                f"{entry.file}: tensor {entry.name}: holds NaN or Inf; the weights are damaged, fetch them again",
            )
    return tensor


class Checkpoint:
    """A folder with `config.json` and safetensors shards, opened without reading any weight.

    Attributes:
        path: the folder.
        config: `config.json`.
        entries: the tensors by name.
        on_disk: the tensors under their stored names, which decide the identity.
    """

    def __init__(self, path: Path, config: dict[str, Any], entries: dict[str, TensorEntry]) -> None:
        self.path = path
        self.config = config
        self.entries = entries
        self.on_disk = entries

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Open and check folder `path`. Raises InputError or UnsupportedError naming file, tensor and remedy."""
        path = Path(path)
        _require(path.is_dir(), f"{path}: not a folder; give a checkpoint folder with config.json")
        _require((path / "config.json").is_file(), f"{path}: no config.json; is this a checkpoint folder?")
        config = read_json(path / "config.json")
        _require(isinstance(config, dict), f"{path / 'config.json'}: not a JSON object")
        index = path / "model.safetensors.index.json"
        if index.is_file():
            return cls(path, config, _indexed(path, index))
        single = path / "model.safetensors"
        if not single.is_file():
            if any(path.glob("*.bin")):
                raise UnsupportedError(
                    f"{path}: only pickled weights (*.bin) are here, which dfq never reads; "
                    "convert them to safetensors with transformers' save_pretrained"
                )
            raise InputError(f"{path}: no model.safetensors and no model.safetensors.index.json; copy the weights")
        return cls(path, config, read_header(single))

    def renamed(self, entries: dict[str, TensorEntry]) -> Checkpoint:
        """The same folder with its tensors, or parts of them, under other names; its identity stays that of the
        files."""
        checkpoint = Checkpoint(self.path, self.config, entries)
        checkpoint.on_disk = self.on_disk
        return checkpoint

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def entry(self, name: str) -> TensorEntry:
        """Where tensor `name` is stored. Raises InputError when it is missing."""
        try:
            return self.entries[name]
        except KeyError:
            raise InputError(
                f"{self.path}: tensor {name} is missing; the checkpoint is incomplete", file=self.path, tensor=name
            ) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor `name`. Raises InputError when it is missing."""
        return self.entry(name).shape

    def read(self, name: str) -> Tensor:
        """The whole tensor in its stored dtype, checked for NaN and Inf."""
        return read_tensor(self.entry(name))

    def read_rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows `begin:end` (of the first dimension) of tensor `name`, checked for NaN and Inf."""
        entry = self.entry(name)
        row_bytes = (entry.end - entry.start) // max(entry.shape[0], 1)
        flat = _read(entry, entry.start + begin * row_bytes, entry.start + min(end, entry.shape[0]) * row_bytes)
        return flat.reshape(-1, *entry.shape[1:])

    def digest(self) -> str:
        """Identity of the weights: headers, config and a sample of every tensor's bytes (not all of them:
        hashing 140 GB before each stage would cost more than the stage)."""
        parts = [json.dumps(self.config, sort_keys=True).encode()]
        for name in sorted(self.on_disk):
            entry = self.on_disk[name]
            parts.append(f"{name} {entry.dtype} {entry.shape}".encode())
            with entry.file.open("rb") as handle:
                for offset in {
                    entry.start,
                    (entry.start + entry.end) // 2,
                    max(entry.start, entry.end - SAMPLE_BYTES),
                }:
                    handle.seek(offset)
                    parts.append(offset.to_bytes(8, "little") + handle.read(min(SAMPLE_BYTES, entry.end - offset)))
        return digest_bytes(*sorted(parts))


def _indexed(path: Path, index: Path) -> dict[str, TensorEntry]:
    """The tensors of a sharded checkpoint; index: its `model.safetensors.index.json`."""
    value = read_json(index)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    _require(
        isinstance(weight_map, dict) and bool(weight_map),
        f"{index}: weight_map is missing or empty; copy it again",
    )
    assert isinstance(weight_map, dict)
    headers: dict[str, dict[str, TensorEntry]] = {}
    entries = {}
    for name, shard in weight_map.items():
        _require(
            isinstance(shard, str) and shard not in ("", ".", "..") and "/" not in shard and "\\" not in shard,
            f"{index}: tensor {name} points to {shard!r}, which is not a file of this folder; restore the index",
        )
        if shard not in headers:
            headers[shard] = read_header(path / shard)
        _require(
            name in headers[shard],
            f"{path / shard}: tensor {name} is missing (the index lists it); copy it again",
        )
        entries[name] = headers[shard][name]
    return entries
