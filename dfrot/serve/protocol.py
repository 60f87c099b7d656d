"""uvicorn's HTTP protocol with limits for clients that send or read too slowly, whatever the application does."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0  # for the head of a request, from its first byte (or the connection)
READ_SECONDS = 30.0  # a reader may stand still for so long


class GuardedProtocol(H11Protocol):
    """A connection that is cut when its client stands still."""

    head_seconds = HEAD_SECONDS
    read_seconds = READ_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = self.loop.call_later(self.head_seconds, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        self._reader_moved()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_done()
        elif self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self.head_seconds, self.transport.abort)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._head_done()  # idle between requests: uvicorn's own limit
        if self.transport.get_write_buffer_size():
            self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader_moved()

    def _watch_reader(self) -> None:
        if self._reader is None:
            self._reader = self.loop.call_later(self.read_seconds, self._late)

    def _late(self) -> None:
        self._reader = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _head_done(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _reader_moved(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
