"""Settings of `dfq serve`."""

from __future__ import annotations

from dataclasses import dataclass


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
