"""Reading the body of a request, within limits of size and time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from starlette.requests import Request

from dfrot.serve.errors import ApiError, bad_request

BODY_SECONDS = 30.0  # for a body to arrive
DRAIN = 8 << 20  # bytes read beyond the limit before the connection is cut


class BodyMemory:
    """The memory of all bodies that are held at a time."""

    def __init__(self, limit: int) -> None:
        """limit: bytes."""
        self.limit, self.held = limit, 0

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Inside, take(bytes) counts what one request holds; it is given back at the end. take raises ApiError 503
        where the limit is reached."""
        own = 0

        def take(count: int) -> None:
            nonlocal own
            if self.held + count > self.limit:
                raise ApiError(503, f"{self.held} bytes of bodies are being read; try again later", code="bodies_full")
            own, self.held = own + count, self.held + count

        try:
            yield take
        finally:
            self.held -= own


async def read_json(request: Request, limit: int, take: Callable[[int], None] = lambda count: None) -> Any:
    """The body of a request as JSON. limit: bytes. take: called for the bytes that are kept, before they are.

    Raises ApiError: 413, 415, 408 or 400, and what `take` raises."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the content type must be application/json")
    too_large = ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit + DRAIN:
        raise too_large
    try:
        body = await asyncio.wait_for(_read(request, limit, take), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
    if body is None:
        raise too_large
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        if b"\\ud" in body.lower():  # an escape that may be half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise bad_request(
            "the body holds half a surrogate pair, which is no Unicode text; remove it", code="invalid_json"
        ) from None
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON ({type(error).__name__})", code="invalid_json") from None


async def _read(request: Request, limit: int, take: Callable[[int], None]) -> bytes | None:
    """The body, None if it is too large. Slightly too large ones are read to their end: a client that is still writing
    does not read the refusal."""
    body, received = bytearray(), 0
    async for chunk in request.stream():
        received += len(chunk)
        if received <= limit:
            take(len(chunk))
            body += chunk
        elif received > limit + DRAIN:
            return None
    return bytes(body) if received <= limit else None


def _refuse_constant(name: str) -> Any:
    """NaN and Infinity are no JSON."""
    raise ValueError(name)
