"""The evaluation windows of a checkpoint, and whether two checkpoints read the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.data.text import Text, evaluation_windows
from dfrot.data.tokenizer import encode, load_tokenizer
from dfrot.errors import InputError, MismatchError
from dfrot.files import digest_bytes

# what decides how text becomes ids; templates and generation defaults do not
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")


@dataclass(frozen=True)
class EvalTokens:
    """A text as one checkpoint's tokenizer reads it."""

    windows: Tensor
    """int64 [n, seqlen]."""
    total: int
    """Tokens of the whole text."""
    digest: str
    """Identity of all its token ids."""
    tokenizer: Any
    """The transformers tokenizer."""
    tokenizer_digest: str
    """Identity of the tokenizer's files."""
    bos: bool
    """Whether BOS is the first token (it is never in between)."""


_cached_ids: dict[tuple[str, str], Tensor] = {}  # (tokenizer files, text): a table of checkpoints shares one text
_CACHE_SIZE = 4


def _token_ids(key: tuple[str, str], tokenizer: Any, text: str) -> Tensor:
    if key not in _cached_ids:
        while len(_cached_ids) >= _CACHE_SIZE:
            _cached_ids.pop(next(iter(_cached_ids)))
        _cached_ids[key] = encode(tokenizer, text)
    return _cached_ids[key]


class WindowReader:
    """Tokenizes one text for many checkpoints: folders with the same tokenizer files share the work."""

    def __init__(self, text: Text, seqlen: int, limit: int | None) -> None:
        """limit: how many windows of `seqlen` tokens; None takes all. Raises InputError for a limit below 1."""
        if limit is not None and limit < 1:
            raise InputError(f"`windows` {limit} is not a positive count", field="windows")
        self.text, self.seqlen, self.limit = text, seqlen, limit
        self._by_tokenizer: dict[str, EvalTokens] = {}
        self._first: tuple[Path, EvalTokens] | None = None

    def read(self, folder: Path) -> EvalTokens:
        """The windows of a checkpoint.

        Raises MismatchError when its tokenizer reads the text differently from that of the first checkpoint."""
        files = [folder / name for name in _FILES]
        key = digest_bytes(*(file.read_bytes() if file.is_file() else b"" for file in files))
        if key not in self._by_tokenizer:
            self._by_tokenizer[key] = self._tokenize(folder, key)
        tokens = self._by_tokenizer[key]
        if self._first is None:
            self._first = (folder, tokens)
        elif tokens.digest != self._first[1].digest:
            raise MismatchError(
                f"{folder}: its tokenizer reads {self.text.name} differently from that of {self._first[0]}, "
                "so perplexities cannot be compared; evaluate it alone",
                file=folder,
            )
        return tokens

    def _tokenize(self, folder: Path, key: str) -> EvalTokens:
        tokenizer = load_tokenizer(folder)
        ids = _token_ids((key, self.text.digest), tokenizer, self.text.text)
        bos = getattr(tokenizer, "bos_token_id", None)
        return EvalTokens(
            windows=evaluation_windows(ids, self.seqlen)[: self.limit],
            total=len(ids),
            digest=digest_bytes(ids.numpy().tobytes()),
            tokenizer=tokenizer,
            tokenizer_digest=key,
            bos=bos is not None and len(ids) > 0 and int(ids[0]) == bos,
        )
