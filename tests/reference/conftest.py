"""The shipped model and the beginning of the held-out text, loaded once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot import reference
from dfrot.data import stdlib

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(reference.path(), local_files_only=True)


@pytest.fixture(scope="session")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        reference.path(), local_files_only=True, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="session")
def held_out(tokenizer: Any) -> Tensor:
    """The first 512 tokens of the held-out split, int64 [512], BOS first."""
    ids = tokenizer(stdlib.text("test")[:6000], verbose=False)["input_ids"]
    return torch.tensor(ids[:512])
