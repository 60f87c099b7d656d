"""Which language model a draft or a vision part belongs to."""

from __future__ import annotations

from pathlib import Path

from dfrot.checkpoint import Checkpoint
from dfrot.files import digest_bytes

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

# what decides how text becomes ids and how conversations are written down
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def language_fingerprint(target: Path) -> str:
    """`fingerprint` of the language model alone, by which a vision part knows it."""
    files = [target / name for name in TOKENIZER_FILES]
    texts = [file.read_bytes() if file.is_file() else b"" for file in files]
    texts += [(target / name).read_bytes() for name in PROCESSOR_FILES if (target / name).is_file()]
    return digest_bytes(Checkpoint.open(target).digest().encode(), *texts)
