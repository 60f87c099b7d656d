"""The table of export formats: what writes each target."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dfrot.export.compressed_tensors import CompressedTensorsLayout
from dfrot.export.folder import FolderWriter
from dfrot.export.gguf.writer import GGUFFile
from dfrot.export.gptq.layout import GPTQLayout
from dfrot.export.source import ExportSource
from dfrot.export.targets import COMPRESSED_TENSORS, GGUF, GPTQ
from dfrot.progress import Progress


class Writer(Protocol):
    """Writes one format."""

    def write(self, source: ExportSource, folder: Path, dtype: str | None, progress: Progress) -> None:
        """Write `source` into the existing `folder`. dtype: of tensors that stay in 16 bits, where the format has a
        choice (None: as in the source). Raises UnsupportedError for what the format cannot hold, ResourceError without
        a package that it needs."""


WRITERS: dict[str, Writer] = {
    COMPRESSED_TENSORS.name: FolderWriter(CompressedTensorsLayout()),
    GGUF.name: GGUFFile(),
    GPTQ.name: FolderWriter(GPTQLayout()),
}
