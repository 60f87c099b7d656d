"""The reference model served in this process, with an untrained draft beside it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfrot.generation.engine import Engine
from dfrot.serve.server import serve
from dfrot.serve.settings import ServeSettings


@pytest.fixture(scope="session")
def engine(reference_engine: Engine) -> Engine:
    """The reference model, decoding plainly."""
    return reference_engine


@pytest.fixture(scope="session")
def draft(reference_draft: Path) -> Path:
    """An untrained draft of the reference model: the text must not change for it."""
    return reference_draft


@contextlib.contextmanager
def running(engine: Engine, **settings: Any) -> Iterator[Any]:
    """A server in a thread: its url, the uvicorn server, and the lines that it reported."""
    pause = threading.Event()
    state = SimpleNamespace(url="", server=None, lines=[])

    def ready(url: str) -> None:
        state.url = url

    def stop(server: Any) -> None:
        state.server = server

    def work() -> None:
        serve_settings = ServeSettings(**{"name": "reference", **settings})
        serve(engine, serve_settings, port=0, ready=ready, report=state.lines.append, stop=stop)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    for _ in range(1000):
        if state.server is not None and state.server.started:
            break
        pause.wait(0.01)
    assert state.server.started
    try:
        yield state
    finally:
        state.server.should_exit = True
        thread.join(40)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def start() -> Any:
    return running


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Any]:
    with running(engine, parallel=4, queue=16, max_tokens=200, max_body=20_000) as state:
        yield state
