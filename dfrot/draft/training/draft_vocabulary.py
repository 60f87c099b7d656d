"""Which tokens a draft proposes where it has a vocabulary of its own: the most frequent ones of its training text.

FR-Spec (arXiv 2502.14856): most of what a small draft reads is the head, and few of its rows are ever chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.draft.training.corpus import Corpus
from dfrot.errors import InputError

AUTO = "auto"
SIZES = (2048, 4096, 8192, 16384, 32768)  # that `auto` chooses from
COVERED = 0.95  # share of the training tokens that `auto` asks for


@dataclass(frozen=True)
class DraftVocabulary:
    """The tokens that a draft proposes."""

    ids: Tensor
    """int64 [N], rising."""
    coverage: float
    """Their share of the training tokens that count."""


def check_size(size: float | str | None, vocab_size: int) -> None:
    """Raise InputError for a size that is no whole number or exceeds the target's vocabulary."""
    if isinstance(size, (int, float)) and (size != int(size) or size > vocab_size):
        raise InputError(
            f"`draft_vocab` {size:g}: must be a whole number of at most {vocab_size}, the target's vocabulary",
            field="draft_vocab",
            limit=vocab_size,
        )


def choose_vocabulary(corpus: Corpus, size: float | str | None, vocab_size: int) -> DraftVocabulary | None:
    """The most frequent tokens among those that count (the answers, or what the target wrote). None for the whole
    vocabulary. size: how many, or `auto`. Of equally frequent tokens those with lower ids come first."""
    if size is None:
        return None
    counts = torch.bincount(corpus.tokens[corpus.mask], minlength=vocab_size)
    order = counts.argsort(descending=True, stable=True)
    covered = counts[order].double().cumsum(0) / max(1, int(counts.sum()))
    if size == AUTO:
        size = next((n for n in SIZES if n < vocab_size and float(covered[n - 1]) >= COVERED), vocab_size)
    count = int(size)
    if count >= vocab_size:
        return None
    return DraftVocabulary(order[:count].sort().values, float(covered[count - 1]))
