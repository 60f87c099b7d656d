"""Killed at any moment, rotate continues and ends with the same bytes."""

from __future__ import annotations

import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfrot.arch import open_described
from dfrot.rotation.fuse import Fuser, Rotations
from dfrot.rotation.hadamard import randomized_hadamard
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

Make = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.stages.rotate.run import rotate
settings = RotateSettings({method!r}, {dataset!r}, seqlen=64, rounds=4)
rotate(Path({model!r}), Path({out!r}), settings, progress=lambda *step: print(*step, flush=True))
"""


def run(model: Path, out: Path, method: str, dataset: str, moment: float = math.inf, delay: float = 0.0) -> int:
    """Rotates in a process of its own, killed `delay` seconds after its `moment`-th step; returns the steps seen."""
    code = SCRIPT.format(
        path=[p for p in sys.path if p], model=str(model), out=str(out), method=method, dataset=dataset
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        steps = 0
        for _ in child.stdout:
            steps += 1
            if steps > moment:
                time.sleep(delay)
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == (0 if steps <= moment else -signal.SIGKILL) or (out.exists() and not child.returncode)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hadamard", "dfrot"])
def test_kill_nine_at_ten_random_moments(
    make: Make, text: str, tmp_path: Path, method: str, contents: Contents
) -> None:
    model = make(num_hidden_layers=16, hidden_size=64, intermediate_size=176)
    straight, out = tmp_path / "straight", tmp_path / "out"
    steps = run(model, straight, method, text)
    source = random.Random(7)
    kills = 0
    while kills < 10:
        run(model, out, method, text, source.uniform(0, steps), source.uniform(0, 0.05))
        kills += not out.exists()
        if out.exists():  # complete, or not there at all
            assert contents(out) == contents(straight)
            shutil.rmtree(out)
    run(model, out, method, text)
    assert contents(out) == contents(straight)
    assert not (tmp_path / ".out.partial").exists()


class Killed(BaseException):
    """Nothing in the library may catch it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("moments", [(0, 7), (20, 29)])
def test_two_interruptions(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: tuple[int, int], contents: Contents
) -> None:
    """At the n-th tensor of a run, before its block is journaled; then again in the resumed run."""
    model = make()
    settings = RotateSettings("orthogonal", None)
    rotate(model, tmp_path / "straight", settings)
    tensors: list[str] = []
    write = Fuser.write

    def counting(self: Fuser, name: str, writer: Any) -> None:
        if name == stop:
            raise Killed
        tensors.append(name)
        write(self, name, writer)

    monkeypatch.setattr(Fuser, "write", counting)
    checkpoint, arch = open_described(model)
    order = list(Fuser(checkpoint, arch, Rotations(r1=randomized_hadamard(arch.hidden, 0))).jobs)
    for moment in moments:
        stop = order[moment]
        with pytest.raises(Killed):
            rotate(model, tmp_path / "out", settings)
        assert not (tmp_path / "out").exists()
    stop = ""
    rotate(model, tmp_path / "out", settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert len(tensors) < len(order) + 2 * 9  # at most one block is done twice per interruption
