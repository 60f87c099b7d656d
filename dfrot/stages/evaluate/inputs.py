"""What the evaluation commands read: checkpoints, checked before any of them is loaded, and their windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfrot.arch import describe
from dfrot.checkpoint import Checkpoint
from dfrot.data.text import Text
from dfrot.data.tokenizer import require_known_ids
from dfrot.errors import InputError
from dfrot.evaluate.tokens import EvalTokens, WindowReader
from dfrot.quant.config import DfqConfig
from dfrot.runtime.load import check_folder


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """A checkpoint folder that can be loaded."""

    checkpoint: Checkpoint
    """Its tensors and configuration."""
    config: DfqConfig | None
    """Its quantization entry; None for an ordinary checkpoint."""

    @property
    def path(self) -> Path:
        """The folder."""
        return self.checkpoint.path

    @property
    def scheme(self) -> str | None:
        """Name of its scheme; None for 16-bit weights."""
        return self.config.scheme.name if self.config is not None and self.config.scheme is not None else None

    def notes(self, seqlen: int) -> list[str]:
        """What the reader of its figures should know: how the folder was read, and windows of `seqlen` tokens that are
        longer than the context it was trained for."""
        context = describe(self.checkpoint.config).config.get("max_position_embeddings")
        notes = list(self.checkpoint.resolved)
        if self.config is not None and self.config.a_bits:
            notes.append(f"activations beside its scheme: inputs of {self.config.other_inputs}")
        if isinstance(context, int) and seqlen > context:
            notes.append(f"windows of {seqlen} tokens exceed its context of {context} (max_position_embeddings)")
        return notes

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of its weight files."""
        return sum(file.stat().st_size for file in {entry.file for entry in self.checkpoint.entries.values()})


def open_checkpoints(models: Sequence[Path]) -> list[EvaluatedCheckpoint]:
    """Check every folder. Raises InputError when there is none, DfqError for a folder that cannot be loaded."""
    if not models:
        raise InputError("no checkpoint to evaluate; give `models`", field="models")
    return [EvaluatedCheckpoint(*check_folder(Path(model))) for model in models]


def read_windows(
    checkpoints: Sequence[EvaluatedCheckpoint], text: Text, seqlen: int, windows: int | None
) -> list[EvalTokens]:
    """The same `windows` (None: all) of `seqlen` tokens for every checkpoint.

    Raises MismatchError when two tokenizers read the text differently, InputError for token ids that a checkpoint has
    no embedding for."""
    reader = WindowReader(text, seqlen, windows)
    read = []
    for checkpoint in checkpoints:
        read.append(reader.read(checkpoint.path))
        require_known_ids(read[-1].windows, describe(checkpoint.checkpoint.config).vocab_size, checkpoint.path)
    return read
