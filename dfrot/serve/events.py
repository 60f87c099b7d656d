"""events"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from dfrot.serve.api import Kind, parse_request
from dfrot.serve.body import read_json
from dfrot.serve.scheduler import Event, Job
from dfrot.serve.service import Service
from dfrot.serve.stream import ResponseBodies, event


class EventStream(Response):
    """Server-sent events of one job; ends the job when the client leaves."""

    def __init__(self, job: Job, bodies: ResponseBodies, first: Event, events: asyncio.Queue[Event]) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self.job, self.bodies, self.opening, self.events = job, bodies, first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            leaving = asyncio.create_task(_left(receive))
            try:
                await _first(asyncio.create_task(self._send(send)), leaving)
            finally:
                leaving.cancel()
        finally:
            self.job.cancel()  # does nothing to a job that is done

    async def _send(self, send: Send) -> None:
        body = self.bodies.first()
        found = self.opening
        while True:
            kind, value = found
            last = kind != "text"
            if kind == "text":
                body += self.bodies.piece(value)
            elif kind == "done":
                body += self.bodies.last(value)
            else:
                body += event(value.body())
            await send({"type": "http.response.body", "body": body, "more_body": not last})
            if last:
                return
            body, found = b"", await self.events.get()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(work: asyncio.Task[Any], leaving: asyncio.Task[None]) -> Any:
    """The result of `work`, or None when the client left before."""
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work


async def generate(service: Service, request: Request, kind: Kind) -> Response:
    """A chat or a completion, whole or streamed."""
    call = parse_request(kind, await read_json(request, service.settings.max_body))
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def emit(found: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, found)

    job = await service.submit(call, emit)
    bodies = ResponseBodies(call, job, service.mark)
    leaving = asyncio.create_task(_left(request.receive))
    handed = False
    try:
        first = await _first(asyncio.create_task(events.get()), leaving)
        if first is None:
            raise ClientDisconnect
        if first[0] == "error":
            raise first[1]
        if call.stream:
            handed = True
            return EventStream(job, bodies, first, events)
        found = await _first(asyncio.create_task(_collected(first, events)), leaving)
        if found is None:
            raise ClientDisconnect
        return JSONResponse(bodies.whole(*found))
    finally:
        leaving.cancel()
        if not handed:
            job.cancel()


async def _collected(found: Event, events: asyncio.Queue[Event]) -> tuple[str, str]:
    pieces = []
    while found[0] == "text":
        pieces.append(found[1])
        found = await events.get()
    if found[0] == "error":
        raise found[1]
    return "".join(pieces), str(found[1])
