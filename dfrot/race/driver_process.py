"""The process of one contender: started on given processors, asked in JSON lines, frozen while others take turns."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfrot.errors import DfqError

LOOP = Path(__file__).parent / "drivers" / "loop.py"
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")  # util-linux; else a frozen process outlives a killed race
GRACE = 5.0  # seconds that a process gets to end by itself
MAX_ANSWER = 1 << 22  # bytes of an answer; a real one has some kilobytes
MAX_REASON = 300  # characters


class ContenderError(DfqError):
    """A contender that failed: what it said last, in one line. The race goes on without it."""

    exit_code = 1


class DriverProcess:
    """Runs `loop.py ENGINE CPUS` under an environment's interpreter.

    The process leads a group of its own, so that `pause` and `close` reach whatever it starts."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """command: what starts the loop. Raises ContenderError."""
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._read = b""
        try:
            self.process = subprocess.Popen(
                [*(DIES_WITH_US if shutil.which(DIES_WITH_US[0]) else ()), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise ContenderError(f"{name}: {error.strerror or error}") from None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to one request. Raises ContenderError when there is none within `seconds`, when the process died,
        answered with an error, or with anything that is no JSON object."""
        self._signal(signal.SIGCONT)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise ContenderError(f"{self.name}: {self._last_words()}") from None
        line = self._line(time.monotonic() + seconds, f"no answer to {request['op']} within {seconds:.0f} s")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ContenderError(f"{self.name}: answered {request['op']} with something that is no JSON object")
        if "error" in answer:
            raise ContenderError(f"{self.name}: {' '.join(str(answer['error']).split())[:MAX_REASON]}")
        return answer

    def pause(self) -> None:
        """Freeze the process, so that none of its threads takes time from others. The next `ask` wakes it."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process and whatever it started."""
        if self.process.poll() is None:
            with contextlib.suppress(ContenderError):
                self.ask({"op": "quit"}, GRACE)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
        self._signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        self._log.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _line(self, deadline: float, late: str) -> bytes:
        """The next line of the process."""
        stream = self.process.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._read:
                if len(self._read) > MAX_ANSWER:
                    raise ContenderError(f"{self.name}: an answer of more than {MAX_ANSWER} bytes")
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ContenderError(f"{self.name}: {late}")
                data = os.read(stream.fileno(), 1 << 16)
                if not data:
                    raise ContenderError(f"{self.name}: {self._last_words()}")
                self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """How a dead process ended, and the last line that it wrote to stderr."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - (1 << 14)))
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing to stderr")
        return f"the process ended (code {self.process.poll()}): {last[:MAX_REASON]}"


def loop_command(
    python: Path | str, engine: str, cpus: Sequence[int], variables: dict[str, str] | None = None
) -> list[str]:
    """The command of a contender's process. engine: a file of drivers/, without its suffix. variables: of its
    environment, beside this process's."""
    prefix = ["env", *(f"{name}={value}" for name, value in variables.items())] if variables else []
    return [*prefix, str(python), str(LOOP), engine, ",".join(str(cpu) for cpu in cpus)]
