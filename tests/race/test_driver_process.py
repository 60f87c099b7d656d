"""The protocol: answers, and everything that a process can do in place of answering."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dfrot.race.driver_process import DIES_WITH_US, ContenderError, DriverProcess
from tests.race.conftest import MakeContender

Start = Callable[..., DriverProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    processes = []

    def begin(*command: str) -> DriverProcess:
        processes.append(DriverProcess("x", command))
        return processes[-1]

    yield begin
    for process in processes:
        process.close()


def loaded(start: Start, fake: MakeContender, **behaviour: object) -> DriverProcess:
    contender = fake("x", **behaviour)
    process = start(*contender.command)
    process.ask({"op": "load", "path": str(contender.path), "threads": 1, "context": 64}, 60)
    return process


def test_every_request_has_its_answer(start: Start, fake: MakeContender) -> None:
    contender = fake("x", loss=1.5, unlikely=3)
    process = start(*contender.command)
    load = process.ask({"op": "load", "path": str(contender.path), "threads": 1, "context": 64}, 60)
    assert load["facts"] == {"version": "fake 1", "kernels": "1 threads, 64 positions"}  # what it prints stays outside
    assert load["seconds"] >= 0
    answer = process.ask({"op": "generate", "ids": [5, 6], "count": 3}, 60)
    assert answer["tokens"] == [7, 8, 9, 10]
    assert process.ask({"op": "loss", "ids": [1, 2, 3]}, 60) == {"loss": (1.5 + 9) / 2, "count": 2}
    assert process.ask({"op": "loss", "ids": [3, 3, 4, 5], "first": 2}, 60) == {"loss": 1.5, "count": 2}
    memory = process.ask({"op": "memory"}, 60)
    assert not Path("/proc/self/smaps_rollup").exists() or 0 < memory["pss_file"] < memory["pss"] <= memory["peak"]
    assert process.ask({"op": "quit"}, 60) == {}
    assert process.process.wait(10) == 0


def test_seconds_are_those_of_the_engine(start: Start, fake: MakeContender) -> None:
    process = loaded(start, fake, seconds=0.02)
    answer = process.ask({"op": "generate", "ids": [1], "count": 4}, 60)
    assert 0.02 <= answer["first"] < 0.06
    assert 0.08 <= answer["decode"] < 0.2


def test_an_error_of_the_engine_is_one_line(start: Start, fake: MakeContender) -> None:
    with pytest.raises(ContenderError, match="ValueError: this model is refused"):
        loaded(start, fake, refuses=True)


def test_a_hang_ends_at_the_limit(start: Start, fake: MakeContender) -> None:
    process = loaded(start, fake, hangs=1)
    begin = time.monotonic()
    with pytest.raises(ContenderError, match="no answer to generate within 0 s"):
        process.ask({"op": "generate", "ids": [1], "count": 1}, 0.3)
    assert time.monotonic() - begin < 5


def test_a_death_is_told_with_its_last_line(start: Start, fake: MakeContender) -> None:
    process = loaded(start, fake, dies=1)
    with pytest.raises(ContenderError, match=r"ended \(code -6\): out of some resource"):
        process.ask({"op": "generate", "ids": [1], "count": 1}, 60)
    with pytest.raises(ContenderError, match="ended"):
        process.ask({"op": "memory"}, 60)


@pytest.mark.parametrize("line", ["no JSON", "[1]"])
def test_an_answer_that_is_no_object_is_refused(start: Start, line: str) -> None:
    process = start(sys.executable, "-c", f"input(); print({line!r})")
    with pytest.raises(ContenderError, match="no JSON object"):
        process.ask({"op": "load"}, 60)


def test_an_endless_answer_is_refused(start: Start) -> None:
    process = start(sys.executable, "-c", "input()\nwhile True: print('x' * 100000, end='')")
    with pytest.raises(ContenderError, match="more than"):
        process.ask({"op": "load"}, 60)


def test_an_interpreter_that_is_not_there(start: Start) -> None:
    with pytest.raises(ContenderError, match=r"No such file|ended \(code 127\)"):
        start("/nowhere/python").ask({"op": "load"}, 60)


def test_a_paused_process_rests_until_it_is_asked(start: Start, fake: MakeContender) -> None:
    process = loaded(start, fake)
    process.pause()
    deadline = time.monotonic() + 10
    while psutil.Process(process.process.pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.ask({"op": "generate", "ids": [1], "count": 0}, 60)["tokens"] == [2]


def test_closing_ends_a_paused_process(start: Start, fake: MakeContender) -> None:
    process = loaded(start, fake)
    process.pause()
    process.close()
    assert process.process.returncode is not None


@pytest.mark.skipif(shutil.which(DIES_WITH_US[0]) is None, reason="needs setpriv of util-linux")
def test_a_frozen_process_dies_with_a_race_that_is_killed() -> None:
    code = (
        "import sys, time, psutil; from dfrot.race.driver_process import DriverProcess\n"
        "process = DriverProcess('x', [sys.executable, '-c', 'input()'])\n"
        "while psutil.Process(process.process.pid).name() == 'setpriv': time.sleep(0.01)\n"
        "process.pause(); print(process.process.pid, flush=True); input()"
    )
    race = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert race.stdout is not None
    contender = psutil.Process(int(race.stdout.readline()))
    race.kill()
    race.communicate()
    _, alive = psutil.wait_procs([contender], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
