"""Datasets as one text, and text as windows of tokens: the GPTQ protocol.

All rows of a split are joined with two newlines and tokenised once, so a tokenizer that adds a BOS adds one, at the
very start. Evaluation takes the first ``n * seqlen`` tokens as n windows and drops the tail; calibration draws
windows at random places of the train split (Frantar et al., arXiv 2210.17323, and their public code).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dfrot.data import stdlib, wikitext
from dfrot.data.text_rows import READERS, read_texts
from dfrot.errors import InputError

Split = Literal["train", "test"]
Encode = Callable[[str], Sequence[int] | Tensor]
"""Text -> token ids, with the BOS policy of the tokenizer already in it."""

ROW_JOINT = "\n\n"


@dataclass(frozen=True)
class Text:
    """One split of a dataset, as one string."""

    name: str
    split: Split
    text: str

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the UTF-8 text: what evidence files state, so that two runs can be compared."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_text(dataset: str, split: Split) -> Text:
    """Return a split of `dataset`: ``wikitext2``, ``stdlib``, or a path.

    A path is a .txt, .raw, .jsonl or .parquet file, which serves as both splits as it is, or a folder with one file
    per split (`wikitext.PATTERNS`). `InputError` for anything that is missing, empty or malformed.
    """
    if split not in ("train", "test"):
        raise InputError(f"dataset split {split!r}: choose train or test")
    if dataset == "stdlib":
        body = stdlib.text(split)
    else:
        body = ROW_JOINT.join(_rows(dataset, split))
    if not body.strip():
        raise InputError(f"{dataset}: the {split} split holds no text; choose another dataset")
    return Text(dataset, split, body)


def tokenize(text: Text, encode: Encode) -> Tensor:
    """Return the token ids of the whole text, int64 [n]: one call of `encode`, so one BOS at most."""
    return torch.as_tensor(encode(text.text), dtype=torch.long)


def evaluation_windows(tokens: Tensor, seqlen: int) -> Tensor:
    """Return the evaluation windows, int64 [n, seqlen]: neither overlap nor padding, the tail is dropped."""
    count = _checked(tokens, seqlen, need=seqlen) // seqlen
    return tokens[: count * seqlen].reshape(count, seqlen)


def calibration_windows(tokens: Tensor, samples: int, seqlen: int, seed: int) -> Tensor:
    """Return random windows, int64 [samples, seqlen], at the offsets that GPTQ's public code draws for `seed`."""
    if samples < 1:
        raise InputError(f"--samples {samples}: must be at least 1")
    length = _checked(tokens, seqlen, need=seqlen + 1)
    source = random.Random(seed)
    starts = [source.randint(0, length - seqlen - 1) for _ in range(samples)]
    return torch.stack([tokens[start : start + seqlen] for start in starts])


def _rows(dataset: str, split: Split) -> list[str]:
    if dataset == "wikitext2":
        return wikitext.rows_from_hub(split)
    path = Path(dataset)
    if path.is_dir():
        return wikitext.rows_in_folder(path, split)
    if not path.exists():
        kinds = ", ".join(sorted(READERS))
        raise InputError(f"{dataset}: no such dataset; give wikitext2, stdlib, a folder, or a file ({kinds})")
    return read_texts(path)


def _checked(tokens: Tensor, seqlen: int, need: int) -> int:
    if seqlen < 2:
        raise InputError(f"--seqlen {seqlen}: must be at least 2, one token to read and one to predict")
    if tokens.ndim != 1:
        raise InputError(f"tokens of shape {list(tokens.shape)}: expected one row of ids, the whole text")
    if len(tokens) < need:
        raise InputError(
            f"the dataset is too short: {need} tokens needed for --seqlen {seqlen}, {len(tokens)} found; "
            "give a longer text or a smaller --seqlen"
        )
    return len(tokens)


def dataset_label(dataset: str) -> str:
    """How a request names a dataset: a path by its last part, as the whole path would tie a result to a machine."""
    path = Path(dataset)
    return path.name if path.exists() else dataset
