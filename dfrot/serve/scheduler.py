"""The scheduler: one computing thread, a bounded queue, and one step at a time for everybody who is served.

A step is one token, or one round of a draft; a prompt is read in one step. Waiting requests are admitted in the order
of arrival. Among those admitted nobody waits longer than one step of each other.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from dfrot.errors import DfqError
from dfrot.generation.engine import Engine, Generation, TextRequest
from dfrot.serve.errors import ApiError, api_error

Event = tuple[str, Any]
"""("text", piece) any number of times, then one of ("done", finish reason) and ("error", ApiError)."""
JOIN_SECONDS = 5.0  # for the computing thread to end


class Job:
    """One accepted request."""

    _numbers = itertools.count(1)

    def __init__(self, generation: Generation, emit: Callable[[Event], None], deadline: float) -> None:
        """emit: called with every event, from the computing thread; it must not block. deadline: in the time of
        `time.monotonic`."""
        self.generation, self.emit, self.deadline = generation, emit, deadline
        self.number = next(self._numbers)
        self.created = time.monotonic()
        self.first: float | None = None  # when the first step was done
        self.cancelled = False

    def cancel(self) -> None:
        """End the job before its next step, because nobody waits for it any more."""
        self.cancelled = True


class Scheduler:
    """Runs jobs in a thread of its own, from construction until `close`."""

    def __init__(
        self, engine: Engine, parallel: int, waiting: int, finished: Callable[[Job, str], None] = lambda job, how: None
    ) -> None:
        """parallel: jobs served at the same time, each with a cache of its own. waiting: how many more may queue.
        finished: called for every accepted job with its outcome: stop, length, cancelled, timeout or error."""
        self.engine, self.parallel, self.limit, self.finished = engine, parallel, waiting, finished
        self._waiting: deque[Job] = deque()
        self._active: list[tuple[Job, Iterator[str]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dfq-serve", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """Jobs that are served, and jobs that wait."""
        with self._changed:
            return len(self._active), len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether jobs are served."""
        return self._thread.is_alive() and not self._closed

    def submit(self, request: TextRequest, emit: Callable[[Event], None], seconds: float) -> Job:
        """Queue a request. emit: see `Job`. seconds: its time limit, waiting included.

        Raises ApiError: 400 when it cannot be served, 429 when the queue is full, 503 while closing."""
        try:
            generation = self.engine.start(request)
        except DfqError as error:
            raise api_error(error) from None
        job = Job(generation, emit, time.monotonic() + seconds)
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is shutting down")
            if len(self._waiting) >= self.limit and len(self._active) >= self.parallel:
                raise ApiError(429, f"{len(self._waiting)} requests wait already; try again later", code="queue_full")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self, seconds: float = JOIN_SECONDS) -> None:
        """End all jobs, with an error for those that are served."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while self._admit():
            for job, steps in list(self._active):
                outcome = self._step(job, steps)
                if outcome is not None:
                    self._end(job, steps, outcome)
        for job, steps in list(self._active):
            self._emit(job, ("error", ApiError(503, "the server is shutting down")))
            self._end(job, steps, "cancelled")

    def _admit(self) -> bool:
        """Admit waiting jobs, and block while there are none at all. Returns False once closed."""
        with self._changed:
            while not self._closed:
                while self._waiting and len(self._active) < self.parallel:
                    job = self._waiting.popleft()
                    self._active.append((job, iter(job.generation)))
                if self._active:
                    return True
                self._changed.wait()
            self._active += [(job, iter(())) for job in self._waiting]
            self._waiting.clear()
            return False

    def _step(self, job: Job, steps: Iterator[str]) -> str | None:
        """One step. Returns the outcome of the job, None if it goes on."""
        if job.cancelled:
            return "cancelled"
        if time.monotonic() > job.deadline:
            self._emit(job, ("error", ApiError(504, "the time limit of one request is over", code="timeout")))
            return "timeout"
        try:
            piece = next(steps, None)
        except DfqError as error:
            self._emit(job, ("error", api_error(error)))
            return "error"
        except Exception as error:  # one broken request must not end the others
            self._emit(job, ("error", ApiError(500, f"internal error ({type(error).__name__})")))
            return "error"
        if job.first is None:
            job.first = time.monotonic()
        if piece is None:
            self._emit(job, ("done", job.generation.finish))
            return str(job.generation.finish)
        if piece:
            self._emit(job, ("text", piece))
        return None

    def _emit(self, job: Job, event: Event) -> None:
        try:
            job.emit(event)
        except RuntimeError:  # the client's event loop is closed
            job.cancel()

    def _end(self, job: Job, steps: Iterator[str], outcome: str) -> None:
        close = getattr(steps, "close", None)
        if close is not None:
            with contextlib.suppress(RuntimeError):
                close()  # releases its cache
        with self._changed:
            self._active = [(other, others) for other, others in self._active if other is not job]
        self.finished(job, outcome)
