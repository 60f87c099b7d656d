"""A request that was accepted: its generation, who gets its events, and how it ends."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dfrot.errors import DfqError
from dfrot.generation.engine import Generation
from dfrot.serve.errors import ApiError, api_error

Event = tuple[str, Any]
"""("text", piece) any number of times, then one of ("done", finish reason) and ("error", ApiError)."""


class Job:
    """One accepted request."""

    _numbers = itertools.count(1)

    def __init__(self, generation: Generation, emit: Callable[[Event], None], deadline: float) -> None:
        """emit: called with every event, from the computing thread; it must not block. deadline: in the time of
        `time.monotonic`."""
        self.generation, self.deadline = generation, deadline
        self._emit = emit
        self.number = next(self._numbers)
        self.created = time.monotonic()
        self.first: float | None = None  # when the first step was done
        self.shared = 0  # tokens of the prompt that had been computed for others
        self.cancelled = False

    def cancel(self) -> None:
        """End the job before its next step, because nobody waits for it any more."""
        self.cancelled = True

    def emit(self, event: Event) -> None:
        """Send an event; a job whose client's event loop is closed is cancelled."""
        try:
            self._emit(event)
        except RuntimeError:
            self.cancel()

    def interruption(self) -> str | None:
        """The outcome of a job that must not take its next step: cancelled or timeout; None if it goes on."""
        if self.cancelled:
            return "cancelled"
        if time.monotonic() > self.deadline:
            self.emit(("error", ApiError(504, "the time limit of one request is over", code="timeout")))
            return "timeout"
        return None

    def fail(self, error: Exception) -> str:
        """Send an error: the library's with its reason, others by their kind alone. Returns the outcome."""
        known = api_error(error) if isinstance(error, DfqError) else None
        self.emit(("error", known or ApiError(500, f"internal error ({type(error).__name__})")))
        return "error"

    def has_text(self, piece: str) -> None:
        """A step gave `piece`."""
        if self.first is None:
            self.first = time.monotonic()
        if piece:
            self.emit(("text", piece))


@dataclass
class Outcome:
    """How a job ended: stop, length, cancelled, timeout or error; None if it goes on."""

    job: Job
    how: str | None = None


@contextlib.contextmanager
def job_outcome(job: Job) -> Iterator[Outcome]:
    """The outcome of a step of one job, which is done inside; what is raised there ends this job and no other."""
    outcome = Outcome(job)
    try:
        yield outcome
    except Exception as error:  # one broken request must not end the others
        outcome.how = job.fail(error)
        return
    if job.generation.finish is not None:
        job.emit(("done", job.generation.finish))
        outcome.how = str(job.generation.finish)
