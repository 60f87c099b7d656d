"""Who computes when: one thread, a bounded queue, and a turn of one step for everybody who is being served.

One step is one token, or one round of a draft. A request that waits is admitted in the order of arrival; among those
admitted nobody waits longer than one step of each other. Prompts are read in one step.
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
from dfrot.serve.errors import ApiError, bad_request

Event = tuple[str, Any]
"""("text", piece), then one of ("done", finish reason) and ("error", ApiError)."""


class Job:
    """One request. emit(event) is called from the computing thread and must not block."""

    _numbers = itertools.count(1)

    def __init__(self, generation: Generation, emit: Callable[[Event], None], deadline: float) -> None:
        self.generation, self.emit, self.deadline = generation, emit, deadline
        self.number = next(self._numbers)
        self.created = time.monotonic()
        self.first: float | None = None  # when the first step was done
        self.cancelled = False

    def cancel(self) -> None:
        """Nobody waits for this any more: it ends before its next step."""
        self.cancelled = True


class Scheduler:
    """parallel: served at the same time, each with a cache of its own. waiting: how many more may queue.

    finished(job, outcome) is told of every job that was accepted: "stop", "length", "cancelled", "timeout", "error"."""

    def __init__(
        self, engine: Engine, parallel: int, waiting: int, finished: Callable[[Job, str], None] = lambda job, how: None
    ) -> None:
        self.engine, self.parallel, self.limit, self.finished = engine, parallel, waiting, finished
        self._waiting: deque[Job] = deque()
        self._active: list[tuple[Job, Iterator[str]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dfq-serve", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """Being served, waiting."""
        with self._changed:
            return len(self._active), len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    def submit(self, request: TextRequest, emit: Callable[[Event], None], seconds: float) -> Job:
        """Queue a request. Raises ApiError: 400 when it cannot be served, 429 when the queue is full, 503 on the way
        down."""
        try:
            generation = self.engine.start(request)
        except DfqError as error:
            code = "context_length_exceeded" if "context" in str(error) else None
            raise bad_request(str(error), code=code) from None
        job = Job(generation, emit, time.monotonic() + seconds)
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is shutting down")
            if len(self._waiting) >= self.limit and len(self._active) >= self.parallel:
                raise ApiError(429, f"{len(self._waiting)} requests wait already; try again later", code="queue_full")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self, seconds: float = 5.0) -> None:
        """End everything: what is being served gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while self._admit():
            for job, steps in list(self._active):
                how = self._step(job, steps)
                if how is not None:
                    self._end(job, steps, how)
        for job, steps in list(self._active):
            self._tell(job, ("error", ApiError(503, "the server is shutting down")))
            self._end(job, steps, "cancelled")

    def _admit(self) -> bool:
        """Fill free places; wait while there is nothing to do. False: closed."""
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
        """One step; how the job ended, None if it goes on."""
        if job.cancelled:
            return "cancelled"
        if time.monotonic() > job.deadline:
            self._tell(job, ("error", ApiError(504, "the time limit of one request is over", code="timeout")))
            return "timeout"
        try:
            piece = next(steps, None)
        except DfqError as error:
            self._tell(job, ("error", bad_request(str(error))))
            return "error"
        except Exception as error:  # one broken request must not end the others
            self._tell(job, ("error", ApiError(500, f"internal error ({type(error).__name__})")))
            return "error"
        if job.first is None:
            job.first = time.monotonic()
        if piece is None:
            self._tell(job, ("done", job.generation.finish))
            return str(job.generation.finish)
        if piece:
            self._tell(job, ("text", piece))
        return None

    def _tell(self, job: Job, event: Event) -> None:
        try:
            job.emit(event)
        except RuntimeError:  # its event loop is gone
            job.cancel()

    def _end(self, job: Job, steps: Iterator[str], how: str) -> None:
        close = getattr(steps, "close", None)
        if close is not None:
            with contextlib.suppress(RuntimeError):
                close()  # lets go of its cache
        with self._changed:
            self._active = [one for one in self._active if one[0] is not job]
        self.finished(job, how)
