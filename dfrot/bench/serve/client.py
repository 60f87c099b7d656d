"""A client that costs its machine little: HTTP/1.1 and server-sent events over asyncio's sockets.

It shares the processor with the server that it measures, so it does no more than that: one connection per request,
which ends with the response.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from dfrot.errors import InputError, ResourceError

MOST_ERROR = 200  # characters of a server's message that are kept


@dataclass
class Answer:
    """What came back for one request; times in seconds of `time.perf_counter`."""

    begin: float = 0.0
    pieces: list[float] = field(default_factory=list)
    """When pieces of text arrived."""
    end: float = 0.0
    prompt_tokens: int = 0
    """As the server counts them; 0 where it does not."""
    new_tokens: int = 0
    """As the server counts them; the number of pieces where it does not."""
    error: str | None = None
    """Why it failed."""


class Client:
    """One server."""

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        """url: with the path under which /completions lies. Raises InputError for one that is no http or https URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"`url` {url}: give one such as http://127.0.0.1:8000/v1", field="url")
        self.host, self.path, self.timeout = parts.hostname, parts.path.rstrip("/"), timeout
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = f"authorization: Bearer {api_key}\r\n" if api_key else ""

    async def first_model(self) -> str:
        """The name of the first model that the server lists. Raises ResourceError where it cannot be reached."""
        try:
            status, body = await asyncio.wait_for(self.whole("GET", "/models"), self.timeout)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
            raise ResourceError(
                f"{self.host}:{self.port}: no answer ({type(error).__name__}); start the server, or give its `url`",
                field="url",
            ) from None
        try:
            return str(json.loads(body)["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise ResourceError(
                f"{self.host}:{self.port}{self.path}/models: status {status}, and no list of models; give `name`",
                field="name",
            ) from None

    async def whole(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of a response."""
        status, lines = await self._request(method, path, body)
        return status, b"\n".join([line async for line in lines])

    async def complete(self, body: Mapping[str, Any]) -> Answer:
        """POST /completions with `stream`. Failures are in the answer."""
        answer = Answer(begin=time.perf_counter())
        try:
            await asyncio.wait_for(self._stream(body, answer), self.timeout)
        except asyncio.TimeoutError:
            answer.error = f"no end within {self.timeout:g} s"
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"[:MOST_ERROR]
        answer.end = time.perf_counter()
        answer.new_tokens = answer.new_tokens or len(answer.pieces)
        if answer.error is None and not answer.pieces:
            answer.error = "an empty answer"
        return answer

    async def _stream(self, body: Mapping[str, Any], answer: Answer) -> None:
        status, lines = await self._request("POST", "/completions", json.dumps(body).encode())
        if status != 200:
            message = b"".join([line async for line in lines]).decode(errors="replace")
            answer.error = f"status {status}: {message}"[:MOST_ERROR]
            return
        async for line in lines:
            if not line.startswith(b"data:") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[5:])
            if error := event.get("error"):
                answer.error = str(error.get("message", error))[:MOST_ERROR]
                return
            if any(choice.get("text") for choice in event.get("choices") or ()):
                answer.pieces.append(time.perf_counter())
            if usage := event.get("usage"):
                answer.prompt_tokens = int(usage.get("prompt_tokens", 0))
                answer.new_tokens = int(usage.get("completion_tokens", 0))

    async def _request(self, method: str, path: str, body: bytes) -> tuple[int, AsyncIterator[bytes]]:
        """Status of the response, and the lines of its body; the connection is closed behind the last one."""
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.ssl, limit=1 << 20)
        head = (
            f"{method} {self.path}{path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{self._headers}\r\n"
        )
        writer.write(head.encode() + body)
        try:
            await writer.drain()
            status = int((await reader.readuntil(b"\r\n")).split()[1])
            headers = {}
            while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
        except BaseException:
            writer.close()
            raise
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        return status, _lines(_chunks(reader) if chunked else _rest(reader), writer)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(1 << 16):
        yield data


async def _lines(parts: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    rest = b""
    try:
        async for part in parts:
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line
        if rest:
            yield rest
    finally:
        writer.close()
