"""Which language model a vision part or a draft belongs to."""

from __future__ import annotations

from pathlib import Path

from dfrot.files import digest_bytes
from dfrot.inputs.open_model import open_model

# The files that decide how text and conversations become token ids. Their order is part of the fingerprint.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def language_fingerprint(folder: Path) -> str:
    """sha256 over a checkpoint's config, weights, tokenizer, chat template and processor; without the vision part of
    our own layout, which names its language model by this fingerprint."""
    files = [folder / name for name in TOKENIZER_FILES]
    contents = [file.read_bytes() if file.is_file() else b"" for file in files]
    contents += [(folder / name).read_bytes() for name in PROCESSOR_FILES if (folder / name).is_file()]
    return digest_bytes(open_model(folder).digest().encode(), *contents)
