"""Writing safetensors shards tensor by tensor, in any order, with a layout fixed beforehand.

The plan (names, dtypes, shapes) decides every byte offset before the first tensor exists. Tensors may then
arrive in any order and in row blocks, memory holds one of them, and an interrupted run that writes the missing
tensors again ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError
from dfrot.files import write_json
from dfrot.safetensors_file import DTYPE_NAMES

COPY_BYTES = 64 << 20  # of a tensor that is copied, in memory at a time
SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that will be written."""

    name: str
    """Its name in the plan (`SafetensorsWriter` may store it under another one)."""
    dtype: torch.dtype
    """Its dtype."""
    shape: tuple[int, ...]
    """Its shape."""

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Place:
    """Where a planned tensor is stored: `start` is the absolute byte offset in `file`."""

    plan: TensorPlan
    file: Path
    start: int


def _into_shards(plan: Sequence[TensorPlan], shard_bytes: int) -> list[list[TensorPlan]]:
    """Consecutive tensors, as many per shard as fit."""
    groups: list[list[TensorPlan]] = [[]]
    used = 0
    for tensor in plan:
        if groups[-1] and used + tensor.nbytes > shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.nbytes
    return groups


class SafetensorsWriter:
    """Writes safetensors shards whose layout is fixed by a plan.

    Args:
        folder: an existing folder.
        plan: the tensors, in the order in which they are stored.
        stem: file name without `.safetensors`.
        shard_bytes: largest size of a shard (a single larger tensor has one of its own).
        metadata: strings for the header of every shard.
        stored: name in the plan -> name in the file.
        prepare: False where another process has laid out the same files before.
    """

    def __init__(
        self,
        folder: Path,
        plan: Sequence[TensorPlan],
        stem: str = "model",
        shard_bytes: int = SHARD_BYTES,
        metadata: dict[str, str] | None = None,
        stored: Callable[[str], str] = str,
        prepare: bool = True,
    ) -> None:
        self.folder, self.stored, self.prepare = folder, stored, prepare
        self.metadata = {"format": "pt", **(metadata or {})}
        self.places: dict[str, _Place] = {}
        self.shards: dict[Path, list[TensorPlan]] = {}
        groups = _into_shards(plan, shard_bytes)
        for number, group in enumerate(groups, 1):
            name = f"{stem}-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else stem
            self.shards[folder / f"{name}.safetensors"] = group
        for file, group in self.shards.items():
            self._lay_out(file, group)
        if len(groups) > 1 and prepare:
            write_json(
                folder / f"{stem}.safetensors.index.json",
                {
                    "metadata": {"total_size": sum(tensor.nbytes for tensor in plan)},
                    "weight_map": {
                        stored(tensor.name): file.name for file, group in self.shards.items() for tensor in group
                    },
                },
            )

    def _lay_out(self, file: Path, group: list[TensorPlan]) -> None:
        """Write the header and reserve the data section, unless that is done; data of an interrupted run stays."""
        header: dict[str, object] = {"__metadata__": self.metadata}
        position = 0
        for tensor in group:
            header[self.stored(tensor.name)] = {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [position, position + tensor.nbytes],
            }
            position += tensor.nbytes
        raw = json.dumps(header, separators=(",", ":"), sort_keys=False).encode()
        raw += b" " * (-len(raw) % 8)  # data starts aligned
        base = 8 + len(raw)
        if self.prepare:
            with file.open("r+b" if file.exists() else "w+b") as handle:
                handle.write(len(raw).to_bytes(8, "little") + raw)
                handle.truncate(base + position)
        offset = base
        for tensor in group:
            self.places[tensor.name] = _Place(tensor, file, offset)
            offset += tensor.nbytes

    def write(self, name: str, tensor: Tensor) -> None:
        """Store tensor `name`. Raises InputError unless shape and dtype are the planned ones."""
        plan = self.places[name].plan
        if tuple(tensor.shape) != plan.shape or tensor.dtype != plan.dtype:
            raise InputError(
                f"{self.places[name].file}: tensor {name}: got {tensor.dtype} {tuple(tensor.shape)}, "
                f"planned {plan.dtype} {plan.shape}"
            )
        self._write(name, 0, tensor)

    def write_rows(self, name: str, begin: int, rows: Tensor) -> None:
        """Store rows `begin:begin+len(rows)` of tensor `name`. Raises InputError for rows that do not fit the plan."""
        plan = self.places[name].plan
        fits = tuple(rows.shape[1:]) == plan.shape[1:] and 0 <= begin <= plan.shape[0] - rows.shape[0]
        if not fits or rows.dtype != plan.dtype:
            raise InputError(f"{self.places[name].file}: tensor {name}: rows do not fit the plan {plan.shape}")
        self._write(name, begin * math.prod(plan.shape[1:]) * plan.dtype.itemsize, rows)

    def copy(self, source: Checkpoint, name: str) -> None:
        """Copy tensor `name` of `source` as it is, in row blocks."""
        entry = source.entry(name)
        if not entry.shape:
            self.write(name, source.read(name))
            return
        step = max(1, COPY_BYTES // max(1, (entry.end - entry.start) // max(entry.shape[0], 1)))
        for begin in range(0, entry.shape[0], step):
            self.write_rows(name, begin, source.read_rows(name, begin, begin + step))

    def _write(self, name: str, offset: int, tensor: Tensor) -> None:
        """Store elements at byte `offset` of tensor `name`."""
        if tensor.numel() == 0:
            return
        place = self.places[name]
        view = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        with place.file.open("r+b", buffering=0) as handle:
            handle.seek(place.start + offset)
            written = 0
            while written < len(view):
                written += handle.write(view[written:])

    def sync(self) -> None:
        """Make everything that was written durable, before a journal records it."""
        for file in self.shards:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
