"""A Hugging Face checkpoint folder, read one tensor (or some rows of it) at a time."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.errors import InputError, UnsupportedError
from dfrot.files import digest_bytes, read_json
from dfrot.safetensors_file import (
    TensorEntry,
    read_bytes,
    read_header,
    read_metadata,
    read_tensor,
    require,
)
from dfrot.weight_files import refuse_adapter, stored_tensors

REPEAT_ROWS = 4096  # of two tensors that are compared, in memory at a time
SAMPLE_BYTES = 4096  # per place, of the three in each tensor that a digest reads


class Checkpoint:
    """A folder with `config.json` and safetensors shards, opened without reading any weight.

    Attributes:
        path: the folder.
        config: `config.json`, with what was resolved.
        entries: the tensors by name.
        on_disk: the tensors under their stored names, which decide the identity.
        stored_config: `config.json` as it is stored.
        resolved: what the folder leaves open or says twice, and how it was read: one sentence each.
        prefix: what all stored names begin with and `entries` do not.
    """

    def __init__(self, path: Path, config: dict[str, Any], entries: dict[str, TensorEntry]) -> None:
        self.path = path
        self.config = self.stored_config = config
        self.entries = self.on_disk = entries
        self.resolved: tuple[str, ...] = ()
        self.prefix = ""

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Open and check folder `path`. Raises InputError or UnsupportedError naming file, tensor and remedy."""
        path = Path(path)
        require(path.is_dir(), f"{path}: not a folder; give a checkpoint folder with config.json")
        refuse_adapter(path)
        require((path / "config.json").is_file(), f"{path}: no config.json; is this a checkpoint folder?")
        config = read_json(path / "config.json")
        require(isinstance(config, dict), f"{path / 'config.json'}: not a JSON object")
        if config.get("transformers_weights") is not None:
            raise UnsupportedError(
                f"{path / 'config.json'}: transformers_weights names another weight file; remove the entry",
                file=path / "config.json",
            )
        entries, notes = stored_tensors(path)
        checkpoint = cls(path, config, entries)
        checkpoint.resolved = tuple(notes)
        return checkpoint

    def renamed(self, entries: dict[str, TensorEntry]) -> Checkpoint:
        """The same folder with its tensors, or parts of them, under other names; its identity stays that of the
        files."""
        checkpoint = copy.copy(self)
        checkpoint.entries = entries
        return checkpoint

    def resolve(
        self,
        note: str,
        entries: dict[str, TensorEntry] | None = None,
        config: dict[str, Any] | None = None,
        prefix: str | None = None,
    ) -> Checkpoint:
        """The same folder, read with other tensors, another configuration or another prefix for the reason `note`, a
        sentence."""
        checkpoint = copy.copy(self)
        checkpoint.prefix = self.prefix if prefix is None else prefix
        checkpoint.entries = self.entries if entries is None else entries
        checkpoint.config = self.config if config is None else config
        checkpoint.resolved = (*self.resolved, note)
        return checkpoint

    def resolution(self) -> dict[str, list[str]]:
        """The entry `resolved` of a record; empty for a folder that left nothing open."""
        return {"resolved": list(self.resolved)} if self.resolved else {}

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
        """The whole tensor in the dtype of its entry, checked for NaN and Inf."""
        return read_tensor(self.entry(name))

    def read_rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows `begin:end` (of the first dimension) of tensor `name`, checked for NaN and Inf."""
        entry = self.entry(name)
        row_bytes = (entry.end - entry.start) // max(entry.shape[0], 1)
        flat = read_bytes(entry, entry.start + begin * row_bytes, entry.start + min(end, entry.shape[0]) * row_bytes)
        return flat.reshape(-1, *entry.shape[1:])

    def repeats(self, first: str, second: str) -> bool:
        """Whether two tensors are equal in dtype, shape and values."""
        one, other = self.entry(first), self.entry(second)
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        parts = ((begin, begin + REPEAT_ROWS) for begin in range(0, one.shape[0] if one.shape else 0, REPEAT_ROWS))
        return all(self.read_rows(first, *part).equal(self.read_rows(second, *part)) for part in parts)

    def digest(self) -> str:
        """Identity of the weights: headers, config and a sample of every tensor's bytes (not all of them:
        hashing 140 GB before each stage would cost more than the stage)."""
        parts = [json.dumps(self.stored_config, sort_keys=True).encode()]
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


__all__ = [
    "Checkpoint",
    "TensorEntry",
    "read_header",
    "read_metadata",
    "read_tensor",
]
