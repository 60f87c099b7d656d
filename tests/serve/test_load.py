"""`dfq bench serve` on a server in this process, and on what is none."""

from __future__ import annotations

from typing import Any

import pytest

from dfrot.bench.serve.client import Answer
from dfrot.bench.serve.run import bench_serve, summary
from dfrot.bench.serve.workload import make_requests
from dfrot.bench.settings import ServeBenchSettings
from dfrot.errors import InputError, ResourceError
from dfrot.serve.server import bind

SMALL: dict[str, Any] = {"requests": 5, "prompt": (2, 9), "answer": (2, 6), "seed": 3}


def test_requests_depend_on_the_seed_alone() -> None:
    settings = ServeBenchSettings("http://x", shared=4, **SMALL)
    requests = make_requests(settings, 40, 2)
    assert requests == make_requests(settings, 40, 2)
    assert len({request.prompt for request in requests}) == 40
    assert len({tuple(request.prompt.split()[:4]) for request in requests}) == 1
    assert {len(request.prompt.split()) - 4 for request in requests} <= set(range(2, 10))
    assert {request.answer for request in requests} == set(range(2, 7))


def test_every_answer_is_counted(server: Any) -> None:
    settings = ServeBenchSettings(server.url + "/v1", clients=(1, 3), **SMALL)
    result = bench_serve(settings)
    assert result["model"] == "reference"
    for level, clients in zip(result["levels"], (1, 3), strict=True):
        wanted = make_requests(settings, 5, clients)
        assert (level["clients"], level["requests"], level["errors"]) == (clients, 5, 0)
        assert level["new_tokens_per_s"] * level["seconds"] == pytest.approx(sum(request.answer for request in wanted))
        assert level["prompt_tokens_per_s"] > 0
        assert 0 < level["first_token"]["p50"] <= level["first_token"]["p95"]


def test_refusals_are_errors_with_their_reason(server: Any) -> None:
    settings = ServeBenchSettings(server.url + "/v1", clients=(2,), name="other", **SMALL)
    (level,) = bench_serve(settings)["levels"]
    assert level["errors"] == 5
    assert "status 404" in next(iter(level["error_kinds"]))
    assert level["first_token"] == {"p50": None, "p95": None}


def test_percentiles() -> None:
    answers = [Answer(0.0, [n / 100, n / 100 + 1], new_tokens=2) for n in range(1, 101)]
    result = summary([*answers, Answer(error="cut")], 10.0)
    assert result["first_token"] == {"p50": 0.51, "p95": 0.96}
    assert (result["errors"], result["requests_per_s"], result["new_tokens_per_s"]) == (1, 10.0, 20.0)


def test_what_is_no_server_is_one_line() -> None:
    with pytest.raises(InputError, match="`url` localhost"):
        bench_serve(ServeBenchSettings("localhost:8000"))
    with bind("127.0.0.1", 0) as unused:
        port = unused.getsockname()[1]
        with pytest.raises(ResourceError, match="no answer"):
            bench_serve(ServeBenchSettings(f"http://127.0.0.1:{port}/v1"))
    with pytest.raises(InputError, match="`answer`"):
        ServeBenchSettings("http://x", answer=(9, 2))
