"""Requests that share steps: each gets what it gets alone, whoever comes, leaves or fails beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot import reference
from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.generation.batch import Batch
from dfrot.generation.engine import Engine, TextRequest
from dfrot.generation.sampling import Sampling
from dfrot.generation.settings import NgramSettings
from dfrot.generation.target import Target
from dfrot.runtime.load import load_model
from dfrot.serve.errors import ApiError
from dfrot.serve.job import Job
from dfrot.serve.scheduler import Scheduler
from dfrot_kernels import native

pytestmark = pytest.mark.skipif(not native.active(), reason="no native library")

CHUNK = 16
GREEDY, SAMPLED = Sampling(), Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("batching") / "packed", preset("tiny"), "w4a4kv4", 1)


@pytest.fixture(scope="module")
def engine(packed: Path) -> Engine:
    """A random packed model; its text is written by the reference model's tokenizer, whose first tokens it has."""
    return Engine(reference.path(), target=Target(load_model(packed), drafted=False))


class Bench:
    """A scheduler over a batch, with the events of every job."""

    def __init__(self, engine: Engine, parallel: int = 8, waiting: int = 8, cache_bytes: int = 1 << 24) -> None:
        self.batch = Batch(engine.target, CHUNK, cache_bytes)
        self.outcomes: dict[int, str] = {}
        self.texts: dict[int, list[Any]] = {}
        self.scheduler = Scheduler(engine, parallel, waiting, self._finished, self.batch)

    def _finished(self, job: Job, how: str) -> None:
        self.outcomes[job.number] = how

    def submit(self, request: TextRequest, seconds: float = 60) -> Job:
        events: list[Any] = []
        job = self.scheduler.submit(request, events.append, seconds)
        self.texts[job.number] = events
        return job

    def wait(self, *jobs: Job) -> None:
        end = time.monotonic() + 60
        while not all(job.number in self.outcomes for job in jobs):
            assert time.monotonic() < end, "never ended"
            time.sleep(0.002)

    def text(self, job: Job) -> str:
        return "".join(value for kind, value in self.texts[job.number] if kind == "text")


@pytest.fixture
def bench(engine: Engine) -> Iterator[Any]:
    benches = []

    def make(of: Engine = engine, **settings: Any) -> Bench:
        benches.append(Bench(of, **settings))
        return benches[-1]

    yield make
    for bench in benches:
        bench.scheduler.close()
        assert bench.batch.reserved == 0


def request(length: int, new: int, sampling: Sampling = GREEDY, **more: Any) -> TextRequest:
    generator = torch.Generator().manual_seed(length)
    prompt = tuple(torch.randint(3, 320, (length,), generator=generator).tolist())
    return TextRequest(prompt, new, sampling=sampling, seed=length, ignore_eos=True, **more)


REQUESTS = [
    request(3, 40),
    request(50, 12),
    request(17, 1),
    request(9, 30, SAMPLED),
    request(80, 20, SAMPLED),
    request(16, 25, logprobs=2),
    request(33, 50),
    request(5, 8, SAMPLED),
    request(40, 9),
    request(2, 60, SAMPLED),
]


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[tuple[list[int], str]]:
    """Tokens and text of every request alone in the server."""
    alone = Bench(engine, parallel=1)
    results = []
    for one in REQUESTS:
        job = alone.submit(one)
        alone.wait(job)
        results.append((job.generation.out.tokens, alone.text(job)))
    alone.scheduler.close()
    return results


def test_neighbours_change_nothing(bench: Any, expected: Any) -> None:
    """Mixed lengths, samples and log-probabilities, arrivals in the middle, and clients that leave."""
    b = bench()
    jobs, leaving = [], []
    for number, one in enumerate(REQUESTS):
        jobs.append(b.submit(one))
        leaving.append(b.submit(replace(request(70, 400), seed=number)))
        while number % 3 == 2 and jobs[-1].first is None and jobs[-1].number not in b.outcomes:
            time.sleep(0.001)  # the next ones come while these are being written
        if number > 2:
            leaving[number - 2].cancel()
    for job in leaving:
        job.cancel()
    b.wait(*jobs, *leaving)
    for job, (tokens, text) in zip(jobs, expected, strict=True):
        assert job.generation.out.tokens == tokens
        assert b.text(job) == text
        assert b.outcomes[job.number] == "length"
    assert {b.outcomes[job.number] for job in leaving} == {"cancelled"}
    assert b.batch.rows > 1.5 * b.batch.steps, "they shared steps"


def test_who_is_not_in_the_batch_gets_the_same(engine: Engine, expected: Any) -> None:
    for one, (tokens, text) in zip(REQUESTS, expected):
        generation = engine.start(one)
        assert "".join(generation) == text
        assert generation.out.tokens == tokens


def test_a_short_prompt_gives_what_generate_gives(packed: Path, expected: Any) -> None:
    for one, (tokens, _) in zip(REQUESTS, expected):
        if len(one.prompt) <= CHUNK:
            generation = Engine(reference.path(), target=Target(load_model(packed), drafted=False)).start(one)
            assert "".join(generation)
            assert generation.out.tokens == tokens


def test_stop_strings_and_tokens_end_a_text(bench: Any, engine: Engine, expected: Any) -> None:
    tokens, text = expected[0]
    b = bench()
    stopped = b.submit(replace(REQUESTS[0], stops=(text[5:8],)))
    token = b.submit(replace(REQUESTS[0], stop_tokens=(tokens[6],)))
    b.wait(stopped, token)
    assert b.text(stopped) == text[: text.index(text[5:8])]
    assert token.generation.out.tokens == tokens[: tokens.index(tokens[6]) + 1]
    assert {b.outcomes[job.number] for job in (stopped, token)} == {"stop"}


def test_broken_and_late_requests_end_alone(bench: Any, expected: Any) -> None:
    def broken(ids: Any, scores: Any) -> Any:
        raise ZeroDivisionError

    b = bench()
    jobs = [
        b.submit(request(4, 9, Sampling(processors=(broken,)))),
        b.submit(request(6, 450), 0.02),
        b.submit(REQUESTS[0]),
    ]
    b.wait(*jobs)
    assert [b.outcomes[job.number] for job in jobs] == ["error", "timeout", "length"]
    assert [b.texts[job.number][-1][1].status for job in jobs[:2]] == [500, 504]
    assert jobs[2].generation.out.tokens == expected[0][0]


def test_a_step_that_fails_ends_those_in_it(bench: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()

    def fails(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(b.batch, "step", fails)
    jobs = [b.submit(REQUESTS[0]), b.submit(REQUESTS[1])]
    b.wait(*jobs)
    assert [b.outcomes[job.number] for job in jobs] == ["error", "error"]
    monkeypatch.undo()
    job = b.submit(REQUESTS[0])
    b.wait(job)
    assert b.outcomes[job.number] == "length"


def test_memory_for_caches_is_waited_for_and_what_never_fits_is_refused(bench: Any, engine: Engine) -> None:
    room = Batch(engine.target).bytes_for(60)
    b = bench(parallel=8, waiting=1, cache_bytes=room)
    with pytest.raises(ApiError, match="tokens of prompt and answer take") as caught:
        b.submit(request(30, 31))
    assert caught.value.status == 400
    jobs = [b.submit(request(20, 30)) for _ in range(6)]
    b.wait(*jobs)
    assert {b.outcomes[job.number] for job in jobs} == {"length"}
    assert b.batch.rows == b.batch.steps, "one at a time"


def test_a_full_queue_refuses(bench: Any) -> None:
    b = bench(parallel=2, waiting=1)
    jobs = [b.submit(request(20, 400)) for _ in range(3)]
    with pytest.raises(ApiError) as caught:
        b.submit(request(20, 4))
    assert caught.value.status == 429
    jobs[2].cancel()
    b.wait(jobs[2])  # it leaves the queue while the others are served
    assert b.scheduler.counts == (2, 0)
    for job in jobs:
        job.cancel()
    b.wait(*jobs)


def test_closing_ends_all(bench: Any) -> None:
    b = bench(parallel=2)
    jobs = [b.submit(request(20, 400)) for _ in range(4)]
    b.scheduler.close()
    assert {b.outcomes[job.number] for job in jobs} == {"cancelled"}
    assert {b.texts[job.number][-1][1].status for job in jobs} == {503}


def test_a_draft_serves_whoever_is_alone(packed: Path, expected: Any, bench: Any) -> None:
    """Beside others a text is decoded plainly: the same tokens."""
    drafting = Engine(reference.path(), NgramSettings(), (2, 1, 0), Target(load_model(packed)))
    b = bench(drafting)
    first = b.submit(REQUESTS[6])
    while first.first is None:
        time.sleep(0.001)
    second, sampled = b.submit(REQUESTS[0]), b.submit(replace(REQUESTS[3], drafted=False))
    b.wait(first, second, sampled)
    assert first.generation.out.accepted or first.generation.out.rounds
    assert b.batch.rows > 0
    for job, number in ((first, 6), (second, 0), (sampled, 3)):
        assert job.generation.out.tokens == expected[number][0]
