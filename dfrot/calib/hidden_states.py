"""Hidden states between two blocks as a file: a killed run continues from them, and memory need not hold them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint, read_header
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError
from dfrot.files import fsync_folder


class HiddenStates:
    """The input of block `layer` for all samples, float32 [samples, seqlen, hidden], in a stage's folder.

    stream: a name, where the same samples run through more than one variant of the model."""

    def __init__(self, folder: Path, layer: int, shape: tuple[int, int, int], stream: str = "") -> None:
        self.folder, self.layer, self.shape = folder, layer, shape
        self.stem = f"hidden-{stream}{layer:05d}"
        self._writer: SafetensorsWriter | None = None
        self._reader: Checkpoint | None = None

    @property
    def file(self) -> Path:
        """The safetensors file."""
        return self.folder / f"{self.stem}.safetensors"

    @staticmethod
    def nbytes(shape: tuple[int, int, int]) -> int:
        """Bytes of hidden states of this shape on disk."""
        return 4 * shape[0] * shape[1] * shape[2]

    def write(self, begin: int, rows: Tensor) -> None:
        """Store samples begin .. begin + len(rows); rows [n, seqlen, hidden].

        Raises InputError for NaN and Inf, which no later block could use."""
        if not bool(torch.stack(torch.aminmax(rows)).isfinite().all()):  # NaN passes; ten times as fast as every value
            writer = f"block {self.layer - 1}" if self.layer else "the embedding"
            raise InputError(
                f"{writer} computes NaN or Inf on this text: weights are damaged, or overflow float32; "
                "fetch the checkpoint again"
            )
        self.prepare().write_rows("hidden", begin, rows.float())

    def prepare(self) -> SafetensorsWriter:
        """Make the file, if it is not there, and return its writer. Where processes share a file, one of them must have
        done so before the others begin."""
        if self._writer is None:
            self._writer = SafetensorsWriter(
                self.folder, [TensorPlan("hidden", torch.float32, self.shape)], self.stem, shard_bytes=1 << 62
            )
        return self._writer

    def read(self, begin: int, end: int) -> Tensor:
        """Samples begin .. end, float32 [end - begin, seqlen, hidden]."""
        if self._reader is None:
            self._reader = Checkpoint(self.folder, {}, read_header(self.file))
        return self._reader.read_rows("hidden", begin, end)

    def sync(self) -> None:
        """Make the file durable, before the journal names it."""
        if self._writer is not None:
            self._writer.sync()
        fsync_folder(self.folder)

    def remove(self) -> None:
        """Delete the file, if it exists."""
        self.file.unlink(missing_ok=True)


def remove_hidden_states(folder: Path) -> None:
    """Delete all hidden states of a stage before it is published, those of an interrupted run included."""
    for path in folder.glob("hidden-*.safetensors"):
        path.unlink()
