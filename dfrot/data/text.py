"""Datasets as one text, and text as windows of tokens: the GPTQ protocol.

All rows of a split are joined with two newlines and tokenized once, so a tokenizer that adds a BOS adds one, at the
very start. Evaluation takes the first ``n * seqlen`` tokens as n windows and drops the tail; calibration draws
windows at random places of the train split (Frantar et al., arXiv 2210.17323, and their public code).
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dfrot.data import stdlib, wikitext
from dfrot.data.chat import ChatRenderer, Render
from dfrot.data.dataset_rows import read_rows
from dfrot.data.row_files import SUFFIXES
from dfrot.data.text_rows import READERS, read_texts
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError

Split = Literal["train", "test"]

ROW_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Text:
    """One split of a dataset, as one string."""

    name: str
    """The dataset, as it was given: a name or a path."""
    split: Split
    """train or test."""
    text: str
    """All rows."""
    rendering: str | None = None
    """How its conversations became text: "chat template" or "plain turns"; None where it has none."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the UTF-8 text: records state it, so that two runs can be compared."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def rendered(self) -> dict[str, str]:
        """What records say beside the digest: {"conversations": rendering} where there are conversations."""
        return {} if self.rendering is None else {"conversations": self.rendering}

    @property
    def record(self) -> dict[str, str]:
        """How reports name the text."""
        return {"name": self.name, "split": self.split, "digest": self.digest, **self.rendered}


def load_text(dataset: str, split: Split, tokenizer: Any | None = None) -> Text:
    """A split of `dataset`: ``wikitext2``, ``stdlib``, or a path.

    A path is a .txt, .raw, .json, .jsonl or .parquet file, which serves as both splits, or a folder with one file per
    split (`wikitext.PATTERNS`). Rows are text or conversations (`dataset_rows.FORMATS`).

    tokenizer: renders conversations in its chat template; without one they become plain turns.

    Raises InputError for anything that is missing, empty or malformed, ResourceError for WikiText-2 that can neither be
    read nor fetched.
    """
    if split not in ("train", "test"):
        raise InputError(f"dataset split {split!r}: choose train or test")
    renderer = ChatRenderer(tokenizer)
    if dataset == "stdlib":
        body = stdlib.text(split)
    else:
        body = renderer.without_second_bos(ROW_SEPARATOR.join(_rows(dataset, split, renderer)))
    if not body.strip():
        raise InputError(f"{dataset}: the {split} split holds no text; choose another dataset")
    return Text(dataset, split, body, renderer.name if renderer.count else None)


def rendering_of(dataset: str, model: Path) -> str | None:
    """How `load_text` renders the conversations of a file with the tokenizer in the folder `model`, None where its
    first row is text: reads that row only, and the tokenizer where it is a conversation."""
    path = Path(dataset)
    if not path.is_file() or path.suffix not in SUFFIXES:
        return None
    first = next(read_rows(path), None)
    return ChatRenderer(load_tokenizer(model)).name if first is not None and first.messages else None


def dataset_label(dataset: str) -> str:
    """How a request names a dataset: a path by its last part, as the whole path would tie a result to a machine."""
    path = Path(dataset)
    return path.name if path.exists() else dataset


def evaluation_windows(tokens: Tensor, seqlen: int) -> Tensor:
    """Windows int64 [n, seqlen] of tokens int64 [N]: neither overlap nor padding, the tail is dropped.

    Raises InputError for fewer than `seqlen` tokens, or a `seqlen` below 2."""
    count = _checked_length(tokens, seqlen, least=seqlen) // seqlen
    return tokens[: count * seqlen].reshape(count, seqlen)


def calibration_windows(tokens: Tensor, samples: int, seqlen: int, seed: int) -> Tensor:
    """Random windows int64 [samples, seqlen] of tokens int64 [N], at the offsets that GPTQ's public code draws.

    Raises InputError for fewer than `seqlen` + 1 tokens, `samples` below 1 or above the number of tokens, or a `seqlen`
    below 2."""
    if samples < 1:
        raise InputError(f"`samples` {samples}: must be at least 1", field="samples", limit=1)
    length = _checked_length(tokens, seqlen, least=seqlen + 1)
    if samples > length:
        raise InputError(f"`samples` {samples}: the text has {length} tokens, in which no more windows begin",
                         field="samples", limit=length)  # fmt: skip
    source = random.Random(seed)
    starts = [source.randint(0, length - seqlen - 1) for _ in range(samples)]
    return torch.stack([tokens[start : start + seqlen] for start in starts])


def _rows(dataset: str, split: Split, render: Render) -> list[str]:
    if dataset == "wikitext2":
        return wikitext.rows_from_hub(split)
    path = Path(dataset)
    if path.is_dir():
        return wikitext.rows_in_folder(path, split, render)
    if not path.exists():
        kinds = ", ".join(sorted(READERS))
        raise InputError(
            f"{dataset}: no such dataset; give wikitext2, stdlib, a folder, or a file ({kinds})", field="dataset"
        )
    return read_texts(path, render)


def _checked_length(tokens: Tensor, seqlen: int, least: int) -> int:
    """The number of tokens. Raises InputError when these are not one row of at least `least` ids."""
    if seqlen < 2:
        raise InputError(
            f"`seqlen` {seqlen}: must be at least 2, one token to read and one to predict", field="seqlen", limit=2
        )
    if tokens.ndim != 1:
        raise InputError(f"tokens of shape {list(tokens.shape)}: expected one row of ids, the whole text")
    if len(tokens) < least:
        raise InputError(
            f"the dataset is too short: {least} tokens needed for `seqlen` {seqlen}, {len(tokens)} found; "
            "give a longer text or a smaller `seqlen`",
            field="seqlen",
            limit=len(tokens),
        )
    return len(tokens)
