"""Settings of `dfq serve`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.settings import check, setting


@dataclass(frozen=True)
class ServeSettings:
    """What the endpoint accepts."""

    name: str = setting(metavar="ID", help="The model's name for clients. Default: the folder's name.")
    parallel: int = setting(16, minimum=1, help="Requests that are generated at a time, each step a token of all.")
    queue: int = setting(128, minimum=0, help="Requests that may wait.")
    prompt_chunk: int = setting(128, minimum=1, help="Tokens of a prompt that are read between two steps.")
    kv_memory: int = setting(2048, minimum=1, help="Memory for the caches of all requests of a batch, in MiB.")
    prefix_memory: int = setting(
        256, minimum=0, help="Memory for beginnings of prompts that other requests may share, in MiB; 0 keeps none."
    )
    max_tokens: int = setting(1024, minimum=1, help="The most new tokens of a request.")
    max_body: int = setting(
        32 << 20, minimum=1, help="The largest request body, in bytes; a photograph in base64 passes by default."
    )
    timeout: float = setting(600.0, above=0, help="Seconds after which a request ends, time in the queue included.")
    api_key: str | None = setting(
        None, metavar="KEY", help="The key that clients must send. Without one everybody is let in."
    )

    def __post_init__(self) -> None:
        check(self)
