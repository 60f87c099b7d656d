"""Real processes that run a command together, as torchrun starts them, with one thread each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SMALL_CHUNKS = "import dfrot.calib.taps as taps; taps.CHUNK_BYTES = 1 << 18\n"
"""Three samples of the tests' models and lengths per chunk."""
MAIN = "from dfrot_cli.main import main; main()"
PATIENCE = 240  # seconds until a test gives up


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str


class Running:
    """Processes of one run. code: Python that every process executes before the command."""

    def __init__(self, size: int, *arguments: object, code: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        alone = {name: value for name, value in os.environ.items() if name not in (*place, "RANK", "LOCAL_RANK")}
        program = [sys.executable, "-c", code + SMALL_CHUNKS + MAIN, *map(str, arguments)]
        self.processes = [
            subprocess.Popen(
                program,
                env={**alone, "OMP_NUM_THREADS": "1", **({**place, "RANK": str(rank)} if size > 1 else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]

    def kill(self, rank: int, when: Callable[[], bool]) -> None:
        """kill -9 a rank as soon as `when()`; fails when the run ends before."""
        end = time.monotonic() + PATIENCE
        while not when():
            assert self.processes[rank].poll() is None, "the run ended before it was to be killed"
            assert time.monotonic() < end
            time.sleep(0.002)
        self.processes[rank].send_signal(signal.SIGKILL)

    def wait(self) -> list[Ended]:
        """How every rank ended."""
        try:
            outputs = [process.communicate(timeout=PATIENCE) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [Ended(process.returncode, *output) for process, output in zip(self.processes, outputs)]


Run = Callable[..., list[Ended]]


@pytest.fixture
def start() -> type[Running]:
    """start(size, *arguments, code="") -> Running."""
    return Running


@pytest.fixture
def run() -> Run:
    """run(size, *arguments, code="") -> how every rank ended, all of them well."""

    def checked(size: int, *arguments: object, code: str = "") -> list[Ended]:
        ended = Running(size, *arguments, code=code).wait()
        assert [process.code for process in ended] == [0] * size, ended
        assert all(process.out == process.err == "" for process in ended[1:]), "only the first rank speaks"
        return ended

    return checked


def _same(folder: Path, other: Path) -> None:
    names, others = ({path.relative_to(top) for path in top.rglob("*") if path.is_file()} for top in (folder, other))
    assert names == others
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture
def same() -> Callable[[Path, Path], None]:
    """same(folder, other): fails unless both hold the same files, byte for byte."""
    return _same
