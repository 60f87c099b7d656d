"""The reference model served in this process, with an untrained draft beside it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot import reference
from dfrot.arch import open_described
from dfrot.draft.models.build import build, config_for
from dfrot.draft.store import save_draft
from dfrot.generation.engine import Engine
from dfrot.serve.server import serve
from dfrot.serve.settings import ServeSettings
from dfrot.vision.fingerprint import checkpoint_fingerprint


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(reference.path())


@pytest.fixture(scope="session")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft that guesses at random: the text must not change for it."""
    folder = tmp_path_factory.mktemp("draft")
    _, arch = open_described(reference.path())
    torch.manual_seed(0)
    save_draft(folder, build(config_for(arch, "dream", target_fingerprint=checkpoint_fingerprint(reference.path()))))
    return folder


@contextlib.contextmanager
def running(engine: Engine, **settings: Any) -> Iterator[Any]:
    """A server in a thread: url, and what it reported."""
    there = threading.Event()
    found = SimpleNamespace(url="", server=None, lines=[])

    def ready(url: str) -> None:
        found.url = url

    def work() -> None:
        given = ServeSettings(**{"name": "reference", **settings})
        serve(engine, given, port=0, ready=ready, report=found.lines.append, stop=lambda s: setattr(found, "server", s))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    for _ in range(1000):
        if found.server is not None and found.server.started:
            break
        there.wait(0.01)
    assert found.server.started
    try:
        yield found
    finally:
        found.server.should_exit = True
        thread.join(40)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def start() -> Any:
    return running


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Any]:
    with running(engine, parallel=4, queue=16, max_tokens=200, max_body=20_000) as found:
        yield found
