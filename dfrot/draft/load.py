"""load"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.data.tokenizer import load_tokenizer
from dfrot.draft.models.base import Draft
from dfrot.draft.models.native_pass import unfit
from dfrot.draft.store import check_target, load_draft
from dfrot.generation.load_target import load_target
from dfrot.generation.target import Target

LARGE = 32_000_000  # parameters


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_in(draft: Path, dtype: str) -> Draft:
    """The draft in `dtype`, or in what suits its size."""
    loaded = load_draft(draft)
    if dtype == "auto":
        dtype = "bfloat16" if loaded.count() >= LARGE or unfit(loaded) is None else "float32"
    return loaded.to(DTYPES[dtype])


def open_pair(model: Path, draft: Path, force: bool, dtype: str) -> tuple[Target, Draft, Any]:
    """Target, draft and tokenizer, checked against each other."""
    loaded = load_in(draft, dtype)
    target = load_target(model, loaded.config.aux_layers)
    check_target(loaded.config, model, target.vocab_size, int(target.config.hidden_size), force)
    return target, loaded, load_tokenizer(model)
