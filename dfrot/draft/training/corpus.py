"""What a draft is trained on: sequences of token ids, and which of their slots count.

A slot counts when its token belongs to an answer, because drafting begins at the first token that the target
generated. In plain text everything behind a short prompt counts; in conversations the assistant's turns do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.data.chat import answer_mask, completion_mask
from dfrot.data.dataset_rows import DatasetRow, first_row, read_rows
from dfrot.data.row_files import SUFFIXES
from dfrot.data.text import calibration_windows, evaluation_windows, load_text
from dfrot.data.tokenizer import encode
from dfrot.errors import InputError

HELD_OUT_OF_256 = 16  # conversations whose hash begins with a byte below this are held out, about 6 %
PROMPT = 16  # tokens of plain text before the slots that count

MaskedIds = tuple[list[int], list[bool]]
"""Token ids, and which of their slots count."""


@dataclass(frozen=True)
class Corpus:
    """N sequences of at most S tokens."""

    tokens: Tensor
    """int64 [N, S], padded at the end with zeros."""
    mask: Tensor
    """bool [N, S]: slots that count."""
    lengths: Tensor
    """int64 [N], without padding."""

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.tokens)

    def rows(self, index: Tensor) -> Corpus:
        """The sequences of `index` int64 [n], cut to the longest of them."""
        longest = int(self.lengths[index].max())
        return Corpus(self.tokens[index, :longest], self.mask[index, :longest], self.lengths[index])

    def digest(self) -> str:
        """sha256 of ids and mask."""
        return hashlib.sha256(self.tokens.numpy().tobytes() + self.mask.numpy().tobytes()).hexdigest()


def of_windows(rows: Tensor, prompt: int) -> Corpus:
    """Corpus of windows int64 [N, S] whose slots count from `prompt` on."""
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[:, prompt:] = True
    return Corpus(rows, mask, torch.full((len(rows),), rows.shape[1]))


def load_corpora(
    dataset: str, tokenizer: Any, samples: int, held_out: int, seqlen: int, seed: int
) -> tuple[Corpus, Corpus]:
    """Training and held-out sequences.

    dataset: `stdlib`, `wikitext2`, a text file or folder, or a file of conversations or of prompts with completions
    (`dataset_rows.FORMATS`), where answers count. samples, held_out: how many
    sequences of at most `seqlen` tokens. seed: of the choice of windows. Raises InputError for a dataset without enough
    usable samples."""
    path = Path(dataset)
    if path.suffix in SUFFIXES and path.is_file() and not first_row(path).is_text:
        return _conversations(path, tokenizer, samples, held_out, seqlen)
    train = calibration_windows(encode(tokenizer, load_text(dataset, "train", tokenizer).text), samples, seqlen, seed)
    test = evaluation_windows(encode(tokenizer, load_text(dataset, "test", tokenizer).text), seqlen)
    if len(test) < held_out:
        raise InputError(f"{dataset}: {held_out} held-out windows of {seqlen} tokens needed, {len(test)} found")
    stride = len(test) // held_out
    prompt = min(PROMPT, seqlen // 2)
    return of_windows(train, prompt), of_windows(test[::stride][:held_out], prompt)


def is_held_out(content: Any) -> bool:
    """Whether a conversation (JSON) is held out, which its hash decides, not its place in the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()[0] < HELD_OUT_OF_256


def _conversations(path: Path, tokenizer: Any, samples: int, held_out: int, seqlen: int) -> tuple[Corpus, Corpus]:
    train: list[MaskedIds] = []
    test: list[MaskedIds] = []
    for row in read_rows(path, conversations_first=True):
        ids, mask = _masked_ids(row, tokenizer)
        ids, mask = ids[:seqlen], mask[:seqlen]
        if not any(mask):
            raise InputError(
                f"{row.location}: no answer within `seqlen` {seqlen}; raise it or remove the line",
                field="seqlen",
                file=path,
            )
        content: list[Any] = list(row.messages) or [row.prompt, row.completion]
        (test if is_held_out(content) else train).append((ids, mask))
    if not train or not test:
        raise InputError(
            f"{path}: too few conversations to hold some out by their hash; give at least some dozens", file=path
        )
    return padded_corpus(train[:samples]), padded_corpus(test[:held_out])


def _masked_ids(row: DatasetRow, tokenizer: Any) -> MaskedIds:
    if row.is_text:
        raise InputError(f"{row.location}: plain text among conversations; give it in a file of its own")
    if row.prompt is not None:
        return completion_mask(tokenizer, row.prompt, row.completion)
    return answer_mask(tokenizer, row.messages, row.location)


def padded_corpus(samples: list[MaskedIds]) -> Corpus:
    """Corpus of sequences of different lengths."""
    longest = max(len(ids) for ids, _ in samples)
    tokens = torch.zeros(len(samples), longest, dtype=torch.long)
    mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, (ids, counts) in enumerate(samples):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = torch.tensor(counts)
    return Corpus(tokens, mask, torch.tensor([len(ids) for ids, _ in samples]))
