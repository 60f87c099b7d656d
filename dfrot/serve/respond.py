"""From a request for text to its response: complete, or as server-sent events. Either ends when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from dfrot.serve.api import Kind, parse_request
from dfrot.serve.body import read_json
from dfrot.serve.response_bodies import ResponseBodies, server_sent_event
from dfrot.serve.scheduler import Event, Job
from dfrot.serve.service import Service


class EventStream(Response):
    """Server-sent events of one job. The job ends when the client leaves."""

    def __init__(self, job: Job, bodies: ResponseBodies, first: Event, events: asyncio.Queue[Event]) -> None:
        """first: the job's first event; the others come from `events`."""
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self.job, self.bodies, self.first, self.events = job, bodies, first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of this response."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            disconnect = asyncio.create_task(_disconnected(receive))
            try:
                await _unless_disconnected(asyncio.create_task(self._send(send)), disconnect)
            finally:
                disconnect.cancel()
        finally:
            self.job.cancel()  # does nothing to a finished job

    async def _send(self, send: Send) -> None:
        body = self.bodies.first()
        kind, value = self.first
        while True:
            if kind == "text":
                body += self.bodies.piece(value)
            elif kind == "done":
                body += self.bodies.last(value)
            else:
                body += server_sent_event(value.body())
            await send({"type": "http.response.body", "body": body, "more_body": kind == "text"})
            if kind != "text":
                return
            body, (kind, value) = b"", await self.events.get()


async def _disconnected(receive: Receive) -> None:
    """Returns when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_disconnected(work: asyncio.Task[Any], disconnect: asyncio.Task[None]) -> Any:
    """The result of `work`, or None when the client leaves before it is there."""
    try:
        await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work


async def generate(service: Service, request: Request, kind: Kind) -> Response:
    """The response to a chat or completion request. Raises ApiError for a refused request, ClientDisconnect when the
    client leaves."""
    call = parse_request(kind, await read_json(request, service.settings.max_body))
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def emit(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    job = await service.submit(call, emit)
    bodies = ResponseBodies(call, job, service.run_id)
    disconnect = asyncio.create_task(_disconnected(request.receive))
    streaming = False
    try:
        first = await _unless_disconnected(asyncio.create_task(events.get()), disconnect)
        if first is None:
            raise ClientDisconnect
        if first[0] == "error":
            raise first[1]
        if call.stream:
            streaming = True
            return EventStream(job, bodies, first, events)
        result = await _unless_disconnected(asyncio.create_task(_collected(first, events)), disconnect)
        if result is None:
            raise ClientDisconnect
        return JSONResponse(bodies.complete(*result))
    finally:
        disconnect.cancel()
        if not streaming:
            job.cancel()


async def _collected(event: Event, events: asyncio.Queue[Event]) -> tuple[str, str]:
    """The whole text and the finish reason, from a job's first event on."""
    pieces = []
    while event[0] == "text":
        pieces.append(event[1])
        event = await events.get()
    if event[0] == "error":
        raise event[1]
    return "".join(pieces), str(event[1])
