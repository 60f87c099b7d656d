"""Killed at any moment, rotate continues and ends with the same bytes."""

from __future__ import annotations

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
from dfrot.pipeline.rotate import RotateSettings, rotate
from dfrot.rotation.fuse import Fuser, Rotations
from dfrot.rotation.hadamard import randomized

Make = Callable[..., Path]

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from dfrot.pipeline.rotate import RotateSettings, rotate
print("ready", flush=True)
rotate(Path({model!r}), Path({out!r}), RotateSettings({method!r}, {dataset!r}, seqlen=64, rounds=4))
print("done", flush=True)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def start(model: Path, out: Path, method: str, dataset: str | None) -> subprocess.Popen[str]:
    code = SCRIPT.format(
        path=[p for p in sys.path if p], model=str(model), out=str(out), method=method, dataset=dataset
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hadamard", "dfrot"])
def test_kill_nine_at_ten_random_moments(make: Make, text: str, tmp_path: Path, method: str) -> None:
    model = make(num_hidden_layers=24, hidden_size=64, intermediate_size=176)
    begin = time.monotonic()
    assert start(model, tmp_path / "straight", method, text).wait() == 0
    whole = time.monotonic() - begin
    moments = random.Random(7)
    kills = 0
    for _ in range(40):
        child = start(model, tmp_path / "out", method, text)
        time.sleep(moments.uniform(0.0, whole / 3))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
        assert (tmp_path / "out").exists() == (child.returncode == 0)  # the final name: nothing or everything
        if (tmp_path / "out").exists():
            assert contents(tmp_path / "out") == contents(tmp_path / "straight")
            if kills >= 10:
                break
            shutil.rmtree(tmp_path / "out")
    assert kills >= 10
    assert not (tmp_path / ".out.partial").exists()


class Killed(BaseException):
    """Nothing in the library may catch it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("moments", [(0, 7), (20, 29)])
def test_two_interruptions(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: tuple[int, int]
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
    order = list(Fuser(checkpoint, arch, Rotations(r1=randomized(arch.hidden, 0))).jobs)
    for moment in moments:
        stop = order[moment]
        with pytest.raises(Killed):
            rotate(model, tmp_path / "out", settings)
        assert not (tmp_path / "out").exists()
    stop = ""
    rotate(model, tmp_path / "out", settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert len(tensors) < len(order) + 2 * 9  # at most one block is done twice per interruption
