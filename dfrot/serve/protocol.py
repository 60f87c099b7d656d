"""uvicorn's HTTP protocol with limits for clients that send or read too slowly, whatever the application does."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0  # for the head of a request, from its first byte (or the connection)
READ_SECONDS = 30.0  # that a client may read nothing while there is something to read


class GuardedProtocol(H11Protocol):
    """A connection that is cut when its client makes no progress."""

    head_seconds = HEAD_SECONDS
    read_seconds = READ_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request's head."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_seconds, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_head_timer()
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Stop the head's timer when the head is complete; start it with the first byte of a further request."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def on_response_complete(self) -> None:
        """Watch whether the client reads the rest of the response."""
        super().on_response_complete()
        self._stop_head_timer()  # between requests uvicorn's own limit applies
        if self.transport.get_write_buffer_size():
            self._watch_reading()

    def pause_writing(self) -> None:
        """The write buffer is full: watch whether the client reads."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """The client has read: stop watching."""
        super().resume_writing()
        self._stop_watching()

    def _watch_reading(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(self.read_seconds, self._cut)

    def _cut(self) -> None:
        self._reading = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_watching(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
