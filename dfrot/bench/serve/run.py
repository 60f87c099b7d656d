"""`dfq bench serve`: requests and tokens per second of a server, and how long its clients wait."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dfrot.bench.serve.client import Answer, Client
from dfrot.bench.serve.workload import LoadRequest, make_requests
from dfrot.bench.settings import ServeBenchSettings
from dfrot.progress import Progress, silent

MOST_KINDS = 5  # of errors that are reported


def bench_serve(settings: ServeBenchSettings, progress: Progress = silent) -> dict[str, Any]:
    """Load a server with `settings.clients` clients at a time, each of which asks for the next answer when it has one;
    JSON.

    `levels`, for every number of clients: `requests_per_s`, `new_tokens_per_s`, `prompt_tokens_per_s`, in `first_token`
    and `between_tokens` seconds at `p50` and `p95` (null without any), `errors` and the commonest `error_kinds`. Before
    the first level one request warms the server up.

    Raises InputError for a URL that is none, ResourceError for a server that does not answer."""
    return asyncio.run(_levels(settings, progress))


async def _levels(settings: ServeBenchSettings, progress: Progress) -> dict[str, Any]:
    client = Client(settings.url, settings.api_key, settings.timeout)
    model = settings.name or await client.first_model()
    await client.complete(_body(settings, model, make_requests(settings, 1)[0]))
    levels = []
    for clients in settings.clients:
        requests = make_requests(settings, max(settings.requests, clients), clients)
        levels.append({"clients": clients, **await _level(settings, client, model, clients, requests, progress)})
    shown = {key: value for key, value in vars(settings).items() if key not in ("api_key", "clients")}
    return {"model": model, "settings": shown, "levels": levels}


async def _level(
    settings: ServeBenchSettings,
    client: Client,
    model: str,
    clients: int,
    requests: Sequence[LoadRequest],
    progress: Progress,
) -> dict[str, Any]:
    pending, answers = iter(requests), list[Answer]()

    async def work() -> None:
        for request in pending:
            answers.append(await client.complete(_body(settings, model, request)))
            progress(f"{clients} clients", len(answers), len(requests))

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return summary(answers, time.perf_counter() - begin)


def _body(settings: ServeBenchSettings, model: str, request: LoadRequest) -> dict[str, Any]:
    body = {"model": model, "prompt": request.prompt, "max_tokens": request.answer, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    return {**body, "ignore_eos": True} if settings.ignore_eos else body


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """The figures of one level, of all its answers. seconds: from the first request to the last answer."""
    good = [answer for answer in answers if answer.error is None]
    gaps = [b - a for answer in good for a, b in zip(answer.pieces, answer.pieces[1:])]
    kinds = Counter(str(answer.error) for answer in answers if answer.error is not None)
    return {
        "requests": len(answers),
        "seconds": seconds,
        "requests_per_s": len(good) / seconds,
        "new_tokens_per_s": sum(answer.new_tokens for answer in good) / seconds,
        "prompt_tokens_per_s": sum(answer.prompt_tokens for answer in good) / seconds,
        "first_token": _percentiles([answer.pieces[0] - answer.begin for answer in good]),
        "between_tokens": _percentiles(gaps),
        "errors": len(answers) - len(good),
        "error_kinds": dict(kinds.most_common(MOST_KINDS)),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
        for name, share in (("p50", 0.5), ("p95", 0.95))
    }
