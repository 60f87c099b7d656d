"""Settings of every test: no network, seeded torch, thread count put back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before anything imports huggingface_hub: a test that needs the network fails at once instead of waiting for it.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    import torch

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)
