"""Settings of `dfq serve`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.settings import check, setting


@dataclass(frozen=True)
class ServeSettings:
    """What the endpoint accepts."""

    name: str = setting(metavar="ID", help="The model's name for clients. Default: the folder's name.")
    parallel: int = setting(4, minimum=1, help="Requests that are generated at a time, token by token in turn.")
    queue: int = setting(32, minimum=0, help="Requests that may wait.")
    max_tokens: int = setting(1024, minimum=1, help="The most new tokens of a request.")
    max_body: int = setting(1 << 20, minimum=1, help="The largest request body, in bytes.")
    timeout: float = setting(600.0, above=0, help="Seconds after which a request ends, time in the queue included.")
    api_key: str | None = setting(
        None, metavar="KEY", help="The key that clients must send. Without one everybody is let in."
    )

    def __post_init__(self) -> None:
        check(self)
