"""A computation that stops on its way, and goes on when it is told to.

Many samples cannot be in the middle of a block together, unless each of their runs is a computation that waits there:
what is alive while it waits is small, what is alive while it computes is large. The stack of a run that waits belongs
to a thread of its own. Threads take turns, so that nothing runs at the same time as anything else, and results do not
depend on timing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch


class _Closed(BaseException):
    """Raised where a run waits that will not go on."""


class PausedRun:
    """`job()` in a thread of its own, without gradients, which runs during `step` only. A context manager: leaving it
    ends a run that waits."""

    def __init__(self, job: Callable[[], None]) -> None:
        """job: calls `pause` of this object wherever it stops."""
        self._job = job
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._value: Any = None
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def step(self) -> Any:
        """Run up to the next `pause`; returns what was given to it, or None at the end of the job.

        Raises what the job raised."""
        if not self._thread.is_alive():
            self._thread.start()
        self._value = None
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error
        return self._value

    def pause(self, value: Any) -> None:
        """Called by the job: hand `value`, which is not None, to `step` and wait for the next one."""
        self._value = value
        self._stopped.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._closed:
            raise _Closed

    def _run(self) -> None:
        try:
            self._wait()
            torch.get_num_threads()  # gives this thread the number of threads that was set in another
            with torch.no_grad():
                self._job()
        except _Closed:
            pass
        except BaseException as error:  # raised again by `step`, whatever it is
            self._error = error
        self._stopped.release()

    def __enter__(self) -> PausedRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        if self._thread.is_alive():
            self._go.release()
            self._thread.join()
