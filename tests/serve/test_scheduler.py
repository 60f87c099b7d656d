"""Turns, the queue, and every outcome of a job, with scripted generations."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dfrot.errors import InputError
from dfrot.serve.errors import ApiError
from dfrot.serve.job import Job
from dfrot.serve.scheduler import Scheduler


class Script:
    """A generation whose text is its name `count` times; `gate` lets each step happen."""

    def __init__(self, name: str, count: int, gate: Callable[[], None]) -> None:
        self.name, self.count, self.gate = name, count, gate
        self.finish, self.usage, self.closed = None, (1, 0), False
        self.out = SimpleNamespace(accepted=[])

    def __iter__(self) -> Iterator[str]:
        try:
            for step in range(self.count):
                self.gate()
                if self.name == "broken" and step:
                    raise ZeroDivisionError
                if self.name == "refused":
                    raise InputError("no: because")
                yield self.name
            self.finish = "stop"  # type: ignore[assignment]
        finally:
            self.closed = True


class Engine:
    def __init__(self) -> None:
        self.gate: Callable[[], None] = lambda: None

    def start(self, request: Any) -> Any:
        name, count = request
        if count < 0:
            raise InputError("does not fit", code="context_length_exceeded")
        return Script(name, count, self.gate)


class Bench:
    """A scheduler, all its events in order, and the outcomes of jobs."""

    def __init__(self, parallel: int = 2, waiting: int = 2) -> None:
        self.engine, self.events, self.outcomes = Engine(), list[Any](), dict[int, str]()
        self.scheduler = Scheduler(self.engine, parallel, waiting, self._finished)  # type: ignore[arg-type]

    def _finished(self, job: Job, how: str) -> None:
        self.outcomes[job.number] = how

    def submit(self, name: str, count: int, seconds: float = 30) -> Job:
        return self.scheduler.submit((name, count), lambda event: self.events.append((name, *event)), seconds)  # type: ignore[arg-type]

    def wait(self, *jobs: Job) -> None:
        end = time.monotonic() + 10
        while not all(job.number in self.outcomes for job in jobs):
            assert time.monotonic() < end, "never ended"
            time.sleep(0.002)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    benches = []

    def make(*args: int) -> Bench:
        benches.append(Bench(*args))
        return benches[-1]

    yield make
    for bench in benches:
        bench.engine.gate = lambda: None
        bench.scheduler.close()
        assert not bench.scheduler.alive


def test_turns_are_fair_and_the_queue_keeps_its_order(bench: Any) -> None:
    b = bench(2, 5)
    hold = threading.Event()
    b.engine.gate = hold.wait
    jobs = [b.submit(name, 3) for name in "abcd"]
    hold.set()
    b.wait(*jobs)
    texts = [name for name, kind, _ in b.events if kind == "text"]
    first_two = texts[: texts.index("c")]
    assert set(first_two) == {"a", "b"}
    # never two steps of a job while the other waits, once both are admitted
    both = first_two[first_two.index("b") - 1 :]
    assert all(a != b for a, b in itertools.pairwise(both))
    assert [b.outcomes[job.number] for job in jobs] == ["stop"] * 4


def test_a_full_queue_refuses(bench: Any) -> None:
    b = bench(1, 1)
    hold = threading.Event()
    b.engine.gate = hold.wait
    jobs = [b.submit("a", 2)]
    while b.scheduler.counts != (1, 0):
        time.sleep(0.001)
    jobs.append(b.submit("b", 2))
    with pytest.raises(ApiError) as caught:
        b.submit("c", 2)
    assert caught.value.status == 429
    hold.set()
    b.wait(*jobs)
    assert b.scheduler.counts == (0, 0)


def test_cancelled_late_broken_and_refused_jobs_end_without_the_others(bench: Any) -> None:
    b = bench(5, 5)
    cancelled, healthy = b.submit("cancelled", 10**9), b.submit("healthy", 200)
    late, broken, refused = b.submit("late", 10**9, 0.05), b.submit("broken", 3), b.submit("refused", 3)
    cancelled.cancel()
    b.wait(cancelled, late, broken, refused, healthy)
    jobs = (cancelled, late, broken, refused, healthy)
    assert [b.outcomes[job.number] for job in jobs] == ["cancelled", "timeout", "error", "error", "stop"]
    errors = {name: value.status for name, kind, value in b.events if kind == "error"}
    assert errors == {"late": 504, "broken": 500, "refused": 400}
    assert all(job.generation.closed for job in (late, broken, refused, healthy))


def test_a_job_without_an_event_loop_is_cancelled(bench: Any) -> None:
    b = bench()

    def gone(event: Any) -> None:
        raise RuntimeError("the loop is closed")

    job = b.scheduler.submit(("a", 10**9), gone, 30)
    b.wait(job)
    assert b.outcomes[job.number] == "cancelled"


def test_closing_ends_all_jobs(bench: Any) -> None:
    b = bench(1, 3)
    running, waiting = b.submit("a", 10**9), b.submit("b", 1)
    b.scheduler.close()
    assert {b.outcomes[job.number] for job in (running, waiting)} == {"cancelled"}
    assert {name for name, kind, _ in b.events if kind == "error"} == {"a", "b"}
    with pytest.raises(ApiError, match="shutting down"):
        b.submit("c", 1)


def test_prompts_beyond_the_context_are_refused_at_once(bench: Any) -> None:
    with pytest.raises(ApiError) as caught:
        bench().submit("a", -1)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
