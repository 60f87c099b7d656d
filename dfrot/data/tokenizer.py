"""Tokenizers: text to token ids under the perplexity protocol's rules."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.files import digest_bytes

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",  # these of models that see
    "processor_config.json",
    "video_preprocessor_config.json",
)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Take the files of a tokenizer (and processor) over as they are, those that are there."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer stored with a checkpoint; remote code is never run."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # anything transformers raises means that the files are unusable
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}: no usable tokenizer ({first}); copy tokenizer.json beside the weights") from None


_REMEMBERED = 4
_encoded: dict[str, Tensor] = {}


def encode(tokenizer: Any, text: str) -> Tensor:
    """Token ids int64 [n]: the tokenizer's default BOS once at the very start, no length limit, no warnings.

    The last few results are remembered: stages that follow each other in one process read the same training text,
    and tokenizing it can take longer than the stage."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    key = digest_bytes(backend.to_str().encode(), text.encode()) if backend is not None else None
    if key is not None and key in _encoded:
        return _encoded[key].clone()
    ids = tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
    tokens = torch.tensor(ids, dtype=torch.long)
    if key is not None:
        while len(_encoded) >= _REMEMBERED:
            del _encoded[next(iter(_encoded))]
        _encoded[key] = tokens.clone()
    return tokens
