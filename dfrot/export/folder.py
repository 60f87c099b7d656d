"""Writing a Hugging Face folder in the layout of another engine."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.data.tokenizer import copy_tokenizer
from dfrot.export.source import ExportSource
from dfrot.files import require_free_space, write_json
from dfrot.progress import Progress


class FolderLayout(Protocol):
    """How a format keeps weights in safetensors files and describes them in config.json."""

    def plan(self, source: ExportSource) -> list[TensorPlan]:
        """Names, dtypes and shapes of the tensors, in the order of the file."""

    def tensors(self, source: ExportSource) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the planned tensors, one linear in memory at a time."""

    def config(self, source: ExportSource) -> dict[str, Any]:
        """The `quantization_config` of config.json."""


@dataclass(frozen=True)
class FolderWriter:
    """Writes config.json, safetensors files and the tokenizer. A `formats.Writer`."""

    layout: FolderLayout
    """How the weights are kept."""

    def write(self, source: ExportSource, folder: Path, dtype: str | None, progress: Progress) -> None:
        """Write `source` into the existing `folder`. `dtype` is not used: 16-bit tensors stay as they are."""
        plan = self.layout.plan(source)
        require_free_space(folder.parent, sum(tensor.nbytes for tensor in plan))
        out = SafetensorsWriter(folder, plan)
        for number, (name, tensor) in enumerate(self.layout.tensors(source)):
            progress("export", number, len(plan))
            out.write(name, tensor)
        out.sync()
        config = copy.deepcopy(source.checkpoint.config)
        config["quantization_config"] = self.layout.config(source)
        write_json(folder / "config.json", config)
        copy_tokenizer(source.checkpoint.path, folder)
        progress("export", len(plan), len(plan))
