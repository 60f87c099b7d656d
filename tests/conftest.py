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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `isa` runs once per instruction set of this machine, or once on the reference."""
    if "isa" in metafunc.fixturenames:
        from dfrot_kernels import native

        metafunc.parametrize("isa", native.available_isas() or ["reference"], indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set in force, or "reference" where no native library is installed."""
    from dfrot_kernels import native

    if request.param == "reference":
        yield "reference"
        return
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)
