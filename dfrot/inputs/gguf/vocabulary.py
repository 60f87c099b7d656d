"""The tokens of a GGUF file, their types, and which of them are special."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import InputError
from dfrot.inputs.gguf.metadata import GGUFMetadata

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
MAX_LENGTH, MAX_CHARACTERS = 1024, 1 << 24  # of a token, of all tokens: bound the number of splits
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unk": 0}  # where a file of model `llama` does not say


@dataclass(frozen=True)
class GGUFVocabulary:
    """The tokens of a file, checked."""

    tokens: list[str]
    """Texts by token id."""
    types: list[int]
    """llama.cpp's token types by token id."""
    ids: dict[str, int]
    """Texts that can be produced -> ids; placeholders of unused rows are not among them."""
    special: dict[str, int]
    """Role -> id."""


def read_vocabulary(metadata: GGUFMetadata, rows: int, kind: str) -> GGUFVocabulary:
    """The tokens of a tokenizer of model `kind`. rows: of the embedding. Raises InputError for what is damaged."""
    tokens = metadata.array(TOKENS, str)
    if tokens is None or not 0 < len(tokens) <= rows:
        count = "no" if tokens is None else len(tokens)
        raise InputError(f"{metadata.where}: {count} tokens, the embedding has {rows} rows", file=metadata.header.file)
    if max(map(len, tokens)) > MAX_LENGTH or sum(map(len, tokens)) > MAX_CHARACTERS:
        raise InputError(f"{metadata.where}: tokens are longer than any model's", file=metadata.header.file)
    types = metadata.array(TYPES, int, len(tokens)) or [NORMAL] * len(tokens)
    special = {}
    for role, name in ROLES.items():
        key = f"tokenizer.ggml.{name}_token_id"
        default = SENTENCEPIECE_IDS.get(role) if kind == "llama" else None
        if metadata.raw(key) is None and (default is None or default >= len(tokens)):
            continue
        special[role] = metadata.integer(key, default, least=0)
        if special[role] >= len(tokens):
            raise metadata.error(key, f"an id below {len(tokens)}")
    ids: dict[str, int] = {}
    for index, text in enumerate(tokens):
        if not text or (types[index] == UNUSED and index not in special.values()):
            continue
        if text in ids:
            raise InputError(
                f"{metadata.where}: tokens {ids[text]} and {index} are both {text[:40]!r}", file=metadata.header.file
            )
        ids[text] = index
    return GGUFVocabulary(tokens, types, ids, special)
