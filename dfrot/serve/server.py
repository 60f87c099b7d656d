"""uvicorn around the application: one process, limits on connections, a graceful end on SIGTERM and Ctrl-C."""

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

CONNECTIONS = 512
KEEP_ALIVE = 30  # seconds
GRACE = 30  # seconds for running requests when the server ends


class _Server(uvicorn.Server):
    """Ends without raising the signal again: a graceful end is a success."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ResourceError when the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        raise ResourceError(
            f"{host}:{port}: cannot be bound ({error.strerror}); choose another --host or --port"
        ) from None
    return made


def serve(
    engine: Engine,
    settings: ServeSettings,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    open_to_all: bool = False,
    ready: Callable[[str], None] = lambda url: None,
    report: Report = lambda line: None,
    stop: Callable[[uvicorn.Server], Any] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. ready(url): told when requests are accepted. report: told of every generation.
    stop: gets the server, whose `should_exit` ends it from another thread.

    Raises UnsupportedError for an address beyond this machine without a key, unless `open_to_all`."""
    if settings.api_key is None and not open_to_all and not loopback(host):
        raise UnsupportedError(
            f"--host {host}: anybody who reaches it could use the model; set --api-key, or say --open-to-all"
        )
    listening = bind(host, port)
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
        named = f"[{host}]" if ":" in host else host
        ready(f"http://{named}:{listening.getsockname()[1]}")
        server.run(sockets=[listening])
    finally:
        service.scheduler.close()
        listening.close()
