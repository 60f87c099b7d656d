"""One window of tokens from a long text, without tokenizing all of it."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

from dfrot.data.text import Text, evaluation_windows
from dfrot.data.tokenizer import encode

CHARACTERS_PER_TOKEN = 12  # of the first stretch that is tokenized: generous, so that a second is rarely needed


def text_window(text: Text, tokenizer: Any, seqlen: int, seed: int | None) -> Tensor:
    """One window int64 [1, seqlen] from a seeded line of the text, or from its start (`seed` None).

    The window begins with the tokenizer's BOS, if it has one. From the start, a text that is too short gives a shorter
    window. Only the stretch that is needed is tokenized: a whole train split takes a gigabyte and most of the run.
    Raises InputError when the text is too short."""
    length = CHARACTERS_PER_TOKEN * seqlen
    start = 0 if seed is None else random.Random(seed).randint(0, max(0, len(text.text) - length))
    start = text.text.rfind("\n", 0, start) + 1
    ids = encode(tokenizer, text.text[start : start + length])
    while len(ids) < seqlen and length < len(text.text):
        start, length = max(0, start - length), 2 * length
        ids = encode(tokenizer, text.text[start : start + length])
    if seed is None:
        seqlen = min(seqlen, max(2, len(ids)))
    return evaluation_windows(ids, seqlen)[:1]
