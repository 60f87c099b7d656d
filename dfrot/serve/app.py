"""The ASGI application: routes, authentication, limits, and the way from a body to a job and back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from dfrot.serve.errors import ApiError
from dfrot.serve.events import generate
from dfrot.serve.metrics import CONTENT_TYPE, resident
from dfrot.serve.service import Service

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")


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
