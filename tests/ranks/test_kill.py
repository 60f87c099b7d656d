"""kill -9 of a random rank at ten moments of a stage, each time continued by another number of ranks."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Same = Callable[[Path, Path], None]
KILLS = 10
PATIENCE = 120  # seconds until the working folder must be there
STAGES = {
    "rotate": ("--seqlen", "48", "--steps", "8"),
    "calibrate": ("--samples", "20", "--seqlen", "32"),
    "quantize": (),
}
SIGN = """
import pathlib
import dfrot.stages.evaluate.perplexity as stage
def begin(*given, evaluate=stage.evaluate):
    pathlib.Path({file!r}).touch()
    return evaluate(*given)
stage.evaluate = begin
"""  # the ranks have met, and an evaluation begins
pytestmark = pytest.mark.slow  # a dozen runs of up to three processes each


class Opened:
    """Whether a journal was written to since: a stage does so when it opens its folder, and with every unit."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.before = self._time()

    def _time(self) -> int:
        return self.journal.stat().st_mtime_ns if self.journal.exists() else 0

    def __call__(self) -> bool:
        """True from the first writing on."""
        return self._time() > self.before


def killed(running: Any, victim: int, begun: Callable[[], bool], delay: float) -> bool:
    """Kill a rank `delay` seconds after the work has begun; False where the run came to its end before."""
    processes, end = running.processes, time.monotonic() + PATIENCE
    while not begun():
        assert processes[victim].poll() is None, running.wait()
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(delay)
    processes[victim].send_signal(signal.SIGKILL)
    ended = running.wait()
    if ended[victim].code == 0:
        return False
    assert ended[victim].code == -signal.SIGKILL
    for rank, survivor in enumerate(ended):
        if rank != victim and survivor.code:  # one that had nothing left to wait for ends well
            assert survivor.code == 2, survivor
            assert f"rank {victim} of {len(ended)} died" in survivor.err, survivor
    return True


@pytest.mark.parametrize("stage", STAGES)
def test_ten_kills_change_no_byte(
    small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, run: Run, start: Any, same: Same, stage: str
) -> None:
    command: list[object] = [stage, "--model", small_llama(), *STAGES[stage]]
    if stage == "quantize":
        calibration = tmp_path / "calibration"
        shape = [*command[1:3], "--dataset", text_file, *STAGES["calibrate"]]
        run(1, "calibrate", *shape, "--out", calibration)
        command += ["--calibration", calibration]
    else:
        command += ["--dataset", text_file]
    begin = time.monotonic()
    run(1, *command, "--out", tmp_path / "one")
    longest = (time.monotonic() - begin) / 2  # imports are the other half
    out, work = tmp_path / "killed", tmp_path / ".killed.partial"
    generator, kills, before = random.Random(0), 0, 0.0
    for attempt in range(3 * KILLS):
        size = 2 + attempt % 2
        opened = Opened(work / "journal.jsonl")
        running = start(size, *command, "--out", out)
        done = killed(running, generator.randrange(size), opened, before)
        kills += done
        if kills == KILLS:
            break
        before = generator.uniform(0, longest) if done else before / 2
        if out.exists():  # it came to its end: from the beginning
            same(tmp_path / "one", out)
            out.rename(tmp_path / f"ended{attempt}")
    assert kills == KILLS
    if not out.exists():
        run(1, *command, "--out", out)
    same(tmp_path / "one", out)


def test_an_evaluation_whose_rank_was_killed_is_made_again(
    small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, run: Run, start: Any
) -> None:
    shape = ("--dataset", text_file, "--seqlen", 16, "--batch", 1, "--json")
    command = ["eval", "ppl", "--model", small_llama(), *shape]
    (one,) = run(1, *command)
    generator = random.Random(0)
    for size in (2, 3):
        begun = tmp_path / f"begun{size}"
        running = start(size, *command, code=SIGN.format(file=str(begun)))
        killed(running, generator.randrange(size), begun.exists, generator.uniform(0, 1))
        again = run(size + 1, *command)
        results = [json.loads(ended.out)["results"][0]["window_nll"] for ended in (one, again[0])]
        assert results[0] == results[1]
