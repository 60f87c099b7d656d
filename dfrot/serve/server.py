"""uvicorn around the application: one process, limited connections, a graceful end on SIGTERM and Ctrl-C."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from dfrot.errors import ResourceError, UnsupportedError
from dfrot.generation.engine import Engine
from dfrot.serve.app import make_app
from dfrot.serve.protocol import GuardedProtocol
from dfrot.serve.service import Report, Service
from dfrot.serve.settings import ServeSettings

CONNECTIONS = 512  # at the same time
KEEP_ALIVE = 30  # seconds between requests of a connection
GRACE = 30  # seconds for running requests when the server ends


class _Server(uvicorn.Server):
    """Does not raise the signal again when it ends: a graceful end is a success."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and Ctrl-C inside."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_private(host: str, settings: ServeSettings) -> None:
    """Raise UnsupportedError for an address beyond this machine without a key."""
    if settings.api_key is None and not loopback(host):
        raise UnsupportedError(
            f"`host` {host}: anybody who reaches it could use the model; set `api_key`, or `open_to_all`",
            field=("host", "api_key", "open_to_all"),
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one. Raises ResourceError when it cannot be bound."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        raise ResourceError(
            f"{host}:{port}: cannot be bound ({error.strerror}); choose another `host` or `port`",
            field=("host", "port"),
        ) from None
    return bound


def serve(
    engine: Engine,
    settings: ServeSettings,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    open_to_all: bool = False,
    ready: Callable[[str], None] = lambda url: None,
    batching: Callable[[str], None] = lambda how: None,
    report: Report = lambda line: None,
    stop: Callable[[uvicorn.Server], Any] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        engine: the model.
        settings: limits, the model's name, the API key.
        host: address to listen at.
        port: 0 takes a free one.
        open_to_all: allow an address beyond this machine without an API key.
        ready: called with the URL when requests are accepted.
        batching: called before that with how requests share the computing thread.
        report: called with a summary of every generation.
        stop: gets the server, whose `should_exit` ends it from another thread.

    Raises UnsupportedError for an address beyond this machine without a key, unless `open_to_all`; ResourceError for
    an address that cannot be bound."""
    if not open_to_all:
        require_private(host, settings)
    bound = bind(host, port)
    service = Service(engine, settings, report)
    try:
        config = uvicorn.Config(
            make_app(service),
            http=GuardedProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",
            access_log=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
            server_header=False,
        )
        server = _Server(config)
        if stop is not None:
            stop(server)
        url_host = f"[{host}]" if ":" in host else host
        bound.listen(CONNECTIONS)  # who connects from now on waits, and is not refused
        batching(service.batching)
        ready(f"http://{url_host}:{bound.getsockname()[1]}")
        server.run(sockets=[bound])
    finally:
        service.scheduler.close()
        bound.close()
