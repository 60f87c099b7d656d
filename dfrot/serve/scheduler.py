"""The scheduler: one computing thread and a bounded queue.

Requests that can share a step do: each step computes one token of every text in a batch, and a chunk of one prompt.
The others (images, drafts, models that the native decoder cannot batch) take turns beside the batch: a step of theirs
is one token, or one round of a draft, and a whole prompt. Waiting requests are admitted in the order of arrival, as
soon as there is a place and memory for their cache.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from dfrot.errors import DfqError
from dfrot.generation.batch import Batch
from dfrot.generation.engine import Engine, Generation, TextRequest
from dfrot.serve.batched_jobs import BatchedJobs, positions_of
from dfrot.serve.errors import ApiError, api_error
from dfrot.serve.job import Event, Job, job_outcome

JOIN_SECONDS = 5.0  # for the computing thread to end


class Scheduler:
    """Runs jobs in a thread of its own, from construction until `close`."""

    def __init__(
        self,
        engine: Engine,
        parallel: int,
        waiting: int,
        finished: Callable[[Job, str], None] = lambda job, how: None,
        batch: Batch | None = None,
    ) -> None:
        """parallel: jobs served at the same time, each with a cache of its own. waiting: how many more may queue.
        finished: called for every accepted job with its outcome: stop, length, cancelled, timeout or error. batch:
        shares steps; without one, or with one that is unfit, everybody takes turns."""
        self.engine, self.parallel, self.limit, self.finished = engine, parallel, waiting, finished
        self.batch = None if batch is None or batch.unfit is not None else batch
        self._batched = None if self.batch is None else BatchedJobs(self.batch)
        self._waiting: deque[Job] = deque()
        self._turns: list[tuple[Job, Iterator[str]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dfq-serve", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """Jobs that are served, and jobs that wait."""
        with self._changed:
            return self._served, len(self._waiting)

    @property
    def _served(self) -> int:
        return len(self._turns) + (0 if self._batched is None else len(self._batched))

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
        self._check_memory(job)
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is shutting down")
            if self._served + len(self._waiting) >= self.parallel + self.limit:
                raise ApiError(429, f"{len(self._waiting)} requests wait already; try again later", code="queue_full")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _check_memory(self, job: Job) -> None:
        """Refuse what could never be served in a batch."""
        if self.batch is None or (needed := self.batch.bytes_for(positions_of(job))) <= self.batch.cache_bytes:
            return
        raise ApiError(
            400,
            f"{positions_of(job)} tokens of prompt and answer take {needed} bytes of cache; this server has "
            f"{self.batch.cache_bytes}: shorten one of them",
            "max_tokens",
            "context_length_exceeded",
        )

    def close(self, seconds: float = JOIN_SECONDS) -> None:
        """End all jobs, with an error for those that are served."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while self._admit():
            self._leave_queue()
            for job, steps in list(self._turns):
                outcome = self._turn(job, steps)
                if outcome is not None:
                    self._end_turns(job, steps)
                    self.finished(job, outcome)
            for ended in self._batched.step() if self._batched else ():
                self.finished(ended.job, str(ended.how))
        self._end_all()

    def _leave_queue(self) -> None:
        """End the waiting jobs that nobody waits for any more, or whose time is over."""
        with self._changed:
            ended = [(job, how) for job in self._waiting if (how := job.interruption()) is not None]
            gone = {id(job) for job, _ in ended}
            self._waiting = deque(job for job in self._waiting if id(job) not in gone)
        for job, how in ended:
            self.finished(job, how)

    def _end_all(self) -> None:
        jobs = [job for job, _ in self._turns]
        for job, steps in list(self._turns):
            self._end_turns(job, steps)
        if self._batched is not None:
            jobs += self._batched.clear()
        for job in [*jobs, *self._waiting]:
            job.emit(("error", ApiError(503, "the server is shutting down")))
            self.finished(job, "cancelled")
        self._waiting.clear()

    def _admit(self) -> bool:
        """Admit waiting jobs, and block while there are none at all. Returns False once closed."""
        while True:
            with self._changed:
                while not self._closed and not self._served and not self._waiting:
                    self._changed.wait()
                if self._closed:
                    return False
                if not self._waiting or self._served >= self.parallel or not self._has_room(self._waiting[0]):
                    return True
                job = self._waiting.popleft()
                turns = not self._shares(job.generation)
                if turns:
                    self._turns.append((job, iter(job.generation)))
                    continue
            self._start_batched(job)

    def _start_batched(self, job: Job) -> None:
        assert self._batched is not None
        outcome = job.interruption()
        if outcome is None:
            try:
                self._batched.add(job)
                return
            except Exception as error:  # one broken request must not end the others
                outcome = job.fail(error)
        self.finished(job, outcome)

    def _has_room(self, job: Job) -> bool:
        return self.batch is None or self.batch.has_room(positions_of(job)) or not self._shares(job.generation)

    def _shares(self, generation: Generation) -> bool:
        """Whether a generation joins the batch. A draft is used while nobody else is served, where the text is greedy
        or nobody asked for a certain one (`TextRequest.drafted`)."""
        if self.batch is None or generation.request.images is not None:
            return False
        return self._served > 0 or generation.shares_steps

    def _turn(self, job: Job, steps: Iterator[str]) -> str | None:
        """One step of a job that takes turns. Returns the outcome of the job, None if it goes on."""
        if (interruption := job.interruption()) is not None:
            return interruption
        with job_outcome(job) as outcome:
            piece = next(steps, None)
            job.has_text(piece or "")
        return outcome.how

    def _end_turns(self, job: Job, steps: Iterator[str]) -> None:
        close = getattr(steps, "close", None)
        if close is not None:
            with contextlib.suppress(RuntimeError):
                close()  # releases its cache
        with self._changed:
            self._turns = [(other, others) for other, others in self._turns if other is not job]
