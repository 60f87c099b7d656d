"""Running an engine on a folder, in a process and an environment of its own.

A driver (`drivers/`) is a script that needs nothing of ours. It reads a JSON file with

- folder: the exported folder; windows: lists of token ids; prompt: token ids; new_tokens: how many to add to it
- threads; options: keyword arguments of the engine's loader

and writes one with

- versions: of the engine's packages; linears: {what serves them: how many}
- losses: per window the negative log-likelihood of tokens 1 .. n - 1; tokens: the greedy ones behind the prompt
- ignored: names of tensors that the engine left out, where it says so

Whatever else happens is in its log. An engine is stopped when its time is over, with all processes that it started.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from dfrot.errors import DfqError, InputError
from dfrot.export.serving.environments import EngineEnvironment
from dfrot.files import read_json, write_json

POLL = 0.2  # seconds between looks at a running engine
UNREADABLE = (DfqError, KeyError, TypeError, ValueError, AttributeError)  # what an answer of another shape raises
ANNOUNCED = 2  # lines behind an error that ends with a colon, or that counts those to come
_ANNOUNCES = re.compile(r":$|\d validation errors? for \w+$")
_ERROR = re.compile(r"(?:^|[\s:])((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)")


class DriverRequest(NamedTuple):
    """What an engine is asked to do."""

    folder: Path
    """The exported folder."""
    windows: list[list[int]]
    """Token ids whose losses are wanted."""
    prompt: list[int]
    """Token ids to continue."""
    new_tokens: int
    """Greedy tokens behind the prompt."""
    threads: int = 1
    """Threads that the engine may use."""


@dataclass
class EngineRun:
    """What an engine did."""

    refusal: str | None = None
    """Its last line, where it did not come to an end."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of its packages."""
    linears: dict[str, int] = field(default_factory=dict)
    """What serves the linears -> how many of them."""
    losses: list[list[float]] = field(default_factory=list)
    """Per window: the negative log-likelihood of tokens 1 .. n - 1."""
    tokens: list[int] = field(default_factory=list)
    """Greedy tokens behind the prompt."""
    ignored: list[str] = field(default_factory=list)
    """Tensors that the engine left out."""
    peak_bytes: int = 0
    """Largest resident memory of its processes together."""
    seconds: float = 0.0
    """From its start to its end."""
    log: str = ""
    """What it wrote on stdout and stderr."""


def run_engine(environment: EngineEnvironment, request: DriverRequest, limit: float) -> EngineRun:
    """Run the driver of an engine. limit: seconds. Never raises for what the engine does: a refusal is a result."""
    content = {**request._asdict(), "folder": str(request.folder.resolve())}
    run, answer = run_driver(environment, content, request.threads, limit)
    if run.refusal is None:
        _read_answer(answer, run, request)
    return run


def run_driver(
    environment: EngineEnvironment, request: dict[str, Any], threads: int, limit: float
) -> tuple[EngineRun, Any]:
    """Run an engine's script on `request`, beside which it gets the engine's options. threads: that it may use.

    Returns how it went, with the packages' versions, and the JSON of its answer, None where `refusal` is set."""
    engine = environment.engine
    with tempfile.TemporaryDirectory(prefix="dfq-engine-") as name:
        work = Path(name)
        write_json(work / "request.json", {**request, "options": engine.options})
        command = [str(environment.python), "-I", str(engine.driver), str(work / "request.json")]
        variables = {**engine.variables, "OMP_NUM_THREADS": str(threads)}
        run = _run([*command, str(work / "answer.json")], variables, work, limit)
        answer = None
        if run.refusal is None:
            try:
                answer = read_json(work / "answer.json")
                run.versions = {str(key): str(value) for key, value in answer["versions"].items()}
            except UNREADABLE as error:
                _refuse(run, error)
    return run, answer


def _run(command: list[str], variables: Mapping[str, str], work: Path, limit: float) -> EngineRun:
    """Run `command` in the folder `work`, its output in a file. `refusal` is set where it failed."""
    settings = [f"{key}={value}" for key, value in variables.items()]
    begin, peak = time.monotonic(), 0
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(
            ["env", *settings, *command], cwd=work, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            while (ended := _ended(process)) is None and time.monotonic() - begin < limit:
                peak = max(peak, _resident(process.pid))
                time.sleep(POLL)
        finally:
            _stop(process)
    code, own_peak = ended or (None, 0)
    seconds = time.monotonic() - begin
    text = (work / "log").read_text(encoding="utf-8", errors="replace")
    run = EngineRun(peak_bytes=max(peak, own_peak), seconds=seconds, log=text)
    if code is None:
        run.refusal = f"stopped after {limit:g} s"
    elif code != 0:
        run.refusal = last_error(text) or f"ended with code {code}"
    return run


def _ended(process: subprocess.Popen[bytes]) -> tuple[int, int] | None:
    """Exit code of a process that has ended, and the most memory that it ever had, whether or not a look saw it."""
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024


def _resident(pid: int) -> int:
    """Resident memory of a process and all that it started."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.Error:
        pass
    return total


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process group of a driver, whatever is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_error(log: str) -> str | None:
    """The last line of a log that names an error, without the engine's prefixes, and with the lines behind it where it
    only announces them; else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for number in range(len(lines) - 1, -1, -1):
        if match := _ERROR.search(lines[number]):
            message = match[1].strip()
            behind = lines[number + 1 : number + 1 + ANNOUNCED] if _ANNOUNCES.search(message) else []
            return " ".join([message, *behind])[:300]
    return lines[-1][:300] if lines else None


def _read_answer(answer: Any, run: EngineRun, request: DriverRequest) -> None:
    """Fill `run` from a driver's answer; anything but what is documented becomes a refusal."""
    try:
        run.linears = {str(key): int(value) for key, value in answer["linears"].items()}
        run.losses = [[float(loss) for loss in window] for window in answer["losses"]]
        run.tokens = [int(token) for token in answer["tokens"]]
        run.ignored = [str(name) for name in answer.get("ignored", ())]
        if [len(losses) + 1 for losses in run.losses] != [len(window) for window in request.windows]:
            raise InputError("its losses do not belong to the windows")
    except UNREADABLE as error:
        _refuse(run, error)


def _refuse(run: EngineRun, error: Exception) -> None:
    run.refusal = f"gave no readable answer ({type(error).__name__}: {error})"


def answer_of(run: EngineRun) -> dict[str, Any]:
    """A run as JSON, without losses and log."""
    return {"linears": run.linears, "ignored": run.ignored, **versions_of(run)}


def versions_of(run: EngineRun) -> dict[str, Any]:
    """Of a run's record: the engine's packages, memory and time."""
    return {"versions": run.versions, "peak_bytes": run.peak_bytes, "seconds": round(run.seconds, 1)}
