"""The ASGI application: routes, authentication, limits, and the way from a body to a job and back."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dfrot.data.images import decode_image
from dfrot.errors import DfqError
from dfrot.generation.engine import Engine, TextRequest
from dfrot.generation.prompt import ImageInputs
from dfrot.serve.api import ApiRequest, Kind, parse_request
from dfrot.serve.errors import ApiError, bad_request
from dfrot.serve.metrics import CONTENT_TYPE, Metrics, resident
from dfrot.serve.scheduler import Event, Job, Scheduler
from dfrot.serve.stream import ResponseBodies, event

BODY_SECONDS = 30.0  # for a body to arrive
DRAIN = 8 << 20  # bytes read beyond the limit before the connection is cut
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ServeSettings:
    """name: of the model, as clients give it. parallel: requests served in turns; queue: how many more may wait.
    max_tokens: new tokens of one request at most. max_body: bytes. timeout: seconds of one request, queue included.
    api_key: None lets everybody in."""

    name: str
    parallel: int = 4
    queue: int = 32
    max_tokens: int = 1024
    max_body: int = 1 << 20
    timeout: float = 600.0
    api_key: str | None = None


class Service:
    """Everything that the routes share."""

    def __init__(self, engine: Engine, settings: ServeSettings, report: Report = lambda line: None) -> None:
        self.engine, self.settings, self.report = engine, settings, report
        self.metrics = Metrics()
        self.scheduler = Scheduler(engine, settings.parallel, settings.queue, self._finished)
        self._encoding = threading.Lock()  # tokenizers are shared by threads, not made for it
        self.mark = secrets.token_hex(4)
        self.started = int(time.time())

    def _finished(self, job: Job, how: str) -> None:
        prompt, new = job.generation.usage
        now, out = time.monotonic(), job.generation.out
        self.metrics.add("dfq_generations_total", outcome=how)
        self.metrics.add("dfq_prompt_tokens_total", prompt if job.first is not None else 0)
        self.metrics.add("dfq_generated_tokens_total", new)
        if out.accepted:
            self.metrics.add("dfq_draft_rounds_total", out.rounds)
            self.metrics.add("dfq_draft_accepted_total", sum(out.accepted))
        if job.first is not None:
            self.metrics.observe("dfq_first_token_seconds", job.first - job.created)
        self.metrics.observe("dfq_request_seconds", now - job.created)
        self.report({"job": job.number, "outcome": how, "prompt": prompt, "new": new, "seconds": now - job.created})

    async def submit(self, call: ApiRequest, emit: Callable[[Event], None]) -> Job:
        """Tokenize (in a thread) and queue."""
        settings = self.settings
        if call.model != settings.name:
            raise ApiError(404, f"model {call.model!r}: is not here; use {settings.name!r}", "model", "model_not_found")
        if call.max_tokens is not None and call.max_tokens > settings.max_tokens:
            raise bad_request(
                f"max_tokens: {call.max_tokens} is above this server's limit of {settings.max_tokens}", "max_tokens"
            )
        ids, images = await run_in_threadpool(self._ids, call)
        most = call.max_tokens or max(1, min(settings.max_tokens, self.engine.context - len(ids)))
        seed = secrets.randbits(62) if call.seed is None else call.seed % (1 << 63)
        sampling = call.sampling(len(ids), self.engine.target.vocab_size)
        request = TextRequest(ids, most, call.stops, sampling, seed, call.ignore_eos, images)
        return self.scheduler.submit(request, emit, settings.timeout)

    def _ids(self, call: ApiRequest) -> tuple[tuple[int, ...], ImageInputs | None]:
        try:
            if call.images and not self.engine.sees:
                raise bad_request(
                    "messages: this model takes no images; leave them out", "messages", "unsupported_content"
                )
            with self._encoding:
                if call.images:
                    pictures = [decode_image(data, f"image {number}") for number, data in enumerate(call.images)]
                    return self.engine.encode_seen(call.prompt, pictures)
                if call.kind == "chat":
                    return self.engine.encode_chat(call.prompt), None
                return self.engine.encode(call.prompt) if isinstance(call.prompt, str) else call.prompt, None
        except DfqError as error:
            raise bad_request(str(error)) from None

    def require_key(self, request: Request) -> None:
        if self.settings.api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self.settings.api_key.encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")


async def read_json(request: Request, most: int) -> Any:
    """The body of a request as JSON. Raises ApiError: 413, 415, 408 or 400."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the content type must be application/json")
    too_large = ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most + DRAIN:
        raise too_large
    try:
        body = await asyncio.wait_for(_body(request, most), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
    if body is None:
        raise too_large
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON ({type(error).__name__})", code="invalid_json") from None


async def _body(request: Request, most: int) -> bytes | None:
    """The body, None if it is too large. Somewhat too large ones are read to their end: who still writes does not
    read the refusal."""
    body, seen = bytearray(), 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen <= most:
            body += chunk
        elif seen > most + DRAIN:
            return None
    return bytes(body) if seen <= most else None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


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


def make_app(service: Service) -> Starlette:
    """The application of a service, which ends with it."""

    def route(path: str, handler: Callable[[Request], Awaitable[Response]], method: str, key: bool = True) -> Route:
        async def answer(request: Request) -> Response:
            status = 500
            try:
                if key:
                    service.require_key(request)
                response = await handler(request)
                status = response.status_code
            except ApiError as error:
                status = error.status
                headers = {"retry-after": "1"} if status in (429, 503) else None
                headers = {"connection": "close"} if status in (408, 413) else headers
                response = JSONResponse(error.body(), status, headers)
            except ClientDisconnect:
                status = 499  # nobody reads it; the counter does
                response = Response(status_code=status)
            finally:
                service.metrics.add("dfq_requests_total", path=path, status=str(status))
            return response

        return Route(path, answer, methods=[method])

    async def chat(request: Request) -> Response:
        return await generate(service, request, "chat")

    async def completion(request: Request) -> Response:
        return await generate(service, request, "completion")

    async def models(request: Request) -> Response:
        one = {"id": service.settings.name, "object": "model", "created": service.started, "owned_by": "dfq"}
        return JSONResponse({"object": "list", "data": [{**one, "max_model_len": service.engine.context}]})

    async def health(request: Request) -> Response:
        fine = service.scheduler.alive
        return JSONResponse({"status": "ok" if fine else "down"}, 200 if fine else 503)

    async def metrics(request: Request) -> Response:
        running, waiting = service.scheduler.counts
        gauges = {"running": running, "waiting": waiting}
        values = {f"dfq_requests_{name}": float(count) for name, count in gauges.items()}
        text = service.metrics.text({**values, "dfq_resident_bytes": float(resident())})
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    async def lost(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        service.metrics.add("dfq_requests_total", path="other", status=str(status))
        told = ApiError(status, f"{request.method} {request.url.path}: this server has {', '.join(PATHS)}")
        return JSONResponse(told.body(), status)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.scheduler.close()

    handlers = (chat, completion, models, health, metrics)
    methods = ("POST", "POST", "GET", "GET", "GET")
    routes = [
        route(path, handler, method, path != "/health") for path, handler, method in zip(PATHS, handlers, methods)
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: lost, 405: lost})
