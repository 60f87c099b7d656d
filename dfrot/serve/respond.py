"""From a request for text to its response: complete, or as server-sent events. Either ends when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from dfrot.serve.api import Kind, parse_request
from dfrot.serve.body import read_json
from dfrot.serve.job import Event, Job
from dfrot.serve.response_bodies import ResponseBodies, server_sent_event
from dfrot.serve.service import Service

Numbered = tuple[int, Event]
"""Number of the choice, and an event of its job."""


class EventStream(Response):
    """Server-sent events of a request's jobs. They end when the client leaves."""

    def __init__(
        self, jobs: Sequence[Job], bodies: ResponseBodies, first: Numbered, events: asyncio.Queue[Numbered]
    ) -> None:
        """first: the first event; the others come from `events`."""
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self.jobs, self.bodies, self.first, self.events = jobs, bodies, first, events

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
            for job in self.jobs:
                job.cancel()  # does nothing to a finished one

    async def _send(self, send: Send) -> None:
        body = self.bodies.first()
        index, (kind, value) = self.first
        unfinished = len(self.jobs)
        while True:
            if kind == "text":
                body += self.bodies.piece(index, value)
            elif kind == "done":
                unfinished -= 1
                body += self.bodies.last(index, value) + (b"" if unfinished else self.bodies.end())
            else:
                unfinished = 0
                body += server_sent_event(value.body())
            await send({"type": "http.response.body", "body": body, "more_body": unfinished > 0})
            if not unfinished:
                return
            body, (index, (kind, value)) = b"", await self.events.get()


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
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Numbered]()

    def emitter(index: int) -> Callable[[Event], None]:
        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

        return emit

    with service.bodies.holding() as take:
        call = parse_request(kind, await read_json(request, service.settings.max_body, take))
        jobs = await service.submit(call, emitter)
        call = replace(call, prompt=None, images=())  # large, and read by now
    bodies = ResponseBodies(call, jobs, service.run_id)
    disconnect = asyncio.create_task(_disconnected(request.receive))
    streaming = False
    try:
        first = await _unless_disconnected(asyncio.create_task(events.get()), disconnect)
        if first is None:
            raise ClientDisconnect
        if first[1][0] == "error":
            raise first[1][1]
        if call.stream:
            streaming = True
            return EventStream(jobs, bodies, first, events)
        results = await _unless_disconnected(asyncio.create_task(_collected(first, events, len(jobs))), disconnect)
        if results is None:
            raise ClientDisconnect
        return JSONResponse(bodies.complete(results))
    finally:
        disconnect.cancel()
        if not streaming:
            for job in jobs:
                job.cancel()


async def _collected(first: Numbered, events: asyncio.Queue[Numbered], count: int) -> list[tuple[str, str]]:
    """Text and finish reason of `count` choices, from the first event on."""
    pieces: list[list[str]] = [[] for _ in range(count)]
    finish: dict[int, str] = {}
    index, (kind, value) = first
    while True:
        if kind == "error":
            raise value
        if kind == "text":
            pieces[index].append(value)
        else:
            finish[index] = str(value)
        if len(finish) == count:
            return [("".join(pieces[number]), finish[number]) for number in range(count)]
        index, (kind, value) = await events.get()
