"""Tokenizers: text to token ids under the perplexity protocol's rules."""

from __future__ import annotations

import re
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
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",  # from here on: of VLMs
    "processor_config.json",
    "video_preprocessor_config.json",
)
TEMPLATES = "additional_chat_templates"
"""Folder of further chat templates, one `NAME.jinja` each, beside the default one."""


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a tokenizer (and of a VLM's processor), those that exist, from `source` to `folder`."""
    templates = sorted(path.relative_to(source).as_posix() for path in (source / TEMPLATES).glob("*.jinja"))
    for name in (*TOKENIZER_FILES, *templates):
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def require_known_ids(ids: Tensor, rows: int, folder: Path | None = None) -> None:
    """Raise InputError where a token id lies outside an embedding of `rows` rows. folder: that of the tokenizer."""
    largest = int(ids.max()) if ids.numel() else -1
    if largest >= rows:
        where = f"{folder}: " if folder is not None else ""
        raise InputError(
            f"{where}the tokenizer makes id {largest}, the embedding has {rows} rows (vocab_size); copy the tokenizer "
            "of this model",
            file=folder,
            limit=rows,
        )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer stored with a checkpoint; remote code is never run. Raises InputError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # anything transformers raises means that the files are unusable
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{folder}: no usable tokenizer ({reason}); copy tokenizer.json beside the weights", file=folder
        ) from None


_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level tokenizers write as they are
_BYTE_LEVEL = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_LEVEL |= {chr(256 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}


class TokenBytes:
    """The UTF-8 bytes that tokens stand for. What it asks the tokenizer once would be made anew at every question."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        self._named = self.special | frozenset(tokenizer.added_tokens_decoder)
        self._byte_level = "ByteLevel" in repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))

    def __call__(self, token: int) -> bytes:
        """The bytes of a token, which may be part of a character; of a special token, its name."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):  # an id without a token
            return b""
        if token in self._named:
            return piece.encode()
        if (fallback := _BYTE_FALLBACK.fullmatch(piece)) is not None:
            return bytes.fromhex(fallback[1])
        if self._byte_level and all(char in _BYTE_LEVEL for char in piece):
            return bytes(_BYTE_LEVEL[char] for char in piece)
        return piece.replace("\u2581", " ").encode()


_CACHE_SIZE = 4
_cached: dict[str, Tensor] = {}  # digest of tokenizer and text -> token ids


def encode(tokenizer: Any, text: str) -> Tensor:
    """Token ids int64 [n]: the tokenizer's default BOS once at the very start, no length limit, no warnings.

    The last few results are cached: stages that follow each other in one process read the same training text,
    and tokenizing it can take longer than the stage."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    key = digest_bytes(backend.to_str().encode(), text.encode()) if backend is not None else None
    if key is not None and key in _cached:
        return _cached[key].clone()
    ids = tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
    tokens = torch.tensor(ids, dtype=torch.long)
    if key is not None:
        while len(_cached) >= _CACHE_SIZE:
            del _cached[next(iter(_cached))]
        _cached[key] = tokens.clone()
    return tokens
