"""The ASGI application: routes, authentication, and errors as responses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from dfrot.serve.errors import ApiError
from dfrot.serve.metrics import CONTENT_TYPE
from dfrot.serve.respond import generate
from dfrot.serve.service import Service

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{id:path}", "/health", "/metrics")
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left; only the metrics show it
Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> Starlette:
    """The application of a service. The service's scheduler is closed when the application ends."""
    endpoints = _Endpoints(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.scheduler.close()

    chat, completions, models, model, health, metrics = PATHS
    routes = [
        _route(service, chat, endpoints.chat, "POST"),
        _route(service, completions, endpoints.completion, "POST"),
        _route(service, models, endpoints.models, "GET"),
        _route(service, model, endpoints.model, "GET"),
        _route(service, health, endpoints.health, "GET", needs_key=False),
        _route(service, metrics, endpoints.metrics, "GET"),
    ]
    handlers = {404: endpoints.unknown_path, 405: endpoints.unknown_path}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


def _route(service: Service, path: str, handler: Handler, method: str, needs_key: bool = True) -> Route:
    """A route that checks the API key, turns ApiErrors into responses, and counts statuses."""

    async def endpoint(request: Request) -> Response:
        status = 500
        try:
            if needs_key:
                service.require_key(request)
            response = await handler(request)
            status = response.status_code
        except ApiError as error:
            status = error.status
            response = JSONResponse(error.body(), status, error.headers)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
            response = Response(status_code=status)
        finally:
            service.metrics.add("dfq_requests_total", path=path, status=str(status))
        return response

    return Route(path, endpoint, methods=[method])


class _Endpoints:
    """The handlers of all routes."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def chat(self, request: Request) -> Response:
        return await generate(self.service, request, "chat")

    async def completion(self, request: Request) -> Response:
        return await generate(self.service, request, "completion")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["id"] != self.service.settings.name:
            raise self.service.unknown_model(request.path_params["id"])
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        service = self.service
        model = {"id": service.settings.name, "object": "model", "created": service.started, "owned_by": "dfq"}
        return {**model, "max_model_len": service.engine.context}

    async def health(self, request: Request) -> Response:
        alive = self.service.scheduler.alive
        return JSONResponse({"status": "ok" if alive else "down"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.service.metrics.text(self.service.gauges), media_type=CONTENT_TYPE)

    async def unknown_path(self, request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        self.service.metrics.add("dfq_requests_total", path="other", status=str(status))
        refusal = ApiError(status, f"{request.method} {request.url.path}: this server has {', '.join(PATHS)}")
        return JSONResponse(refusal.body(), status)
