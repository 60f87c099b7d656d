"""Kill -9 at random moments: whatever was reached, the next run ends with the bytes of an uninterrupted one.

One helper process imports everything once and forks; its children compute, it never does (a fork of a process
with running thread pools would hang).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Build = Callable[..., Path]

SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import dfrot.runtime.block_runner, dfrot.data.tokenizer
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.quantize.run import quantize
from dfrot.quant.scheme import QuantScheme

root, text, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
model = root / "model"
scheme = QuantScheme.parse("w4a4kv4-g16-wasym")
jobs = {
    "cal": lambda out: calibrate(model, out, CalibrateSettings(text, samples=6, seqlen=40)),
    "q": lambda out: quantize(model, root / "exact" / "cal", out, QuantizeSettings(scheme, keep=())),
}

def start(job, out):
    pid = os.fork()
    if pid == 0:
        try:
            jobs[job](out / job)
        except BaseException as error:
            print(job, repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid

def finish(pid):
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return status

source = random.Random(0)
for job in jobs:
    begin = time.perf_counter()
    finish(start(job, root / "exact"))
    duration = time.perf_counter() - begin
    partial, seen = root / "killed" / f".{job}.partial" / "journal.jsonl", []
    for _ in range(kills):
        pid = start(job, root / "killed")
        time.sleep(duration * source.uniform(0.05, 0.9))
        os.kill(pid, signal.SIGKILL)
        if not os.WIFSIGNALED(finish(pid)):
            break  # it was faster than the clock
        seen.append(len(partial.read_bytes().splitlines()) if partial.exists() else 0)
    if not (root / "killed" / job).exists():
        finish(start(job, root / "killed"))
    print(job, *seen)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(build: Build, text: Path, tmp_path: Path, kills: int) -> None:
    build(tmp_path / "model", online=True, num_hidden_layers=6)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(text), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    for job in ("cal", "q"):
        exact, resumed = contents(tmp_path / "exact" / job), contents(tmp_path / "killed" / job)
        assert list(exact) == list(resumed)
        assert [name for name in exact if exact[name] != resumed[name]] == []
    assert not list((tmp_path / "killed").glob(".*"))


def test_two_kills(build: Build, text: Path, tmp_path: Path) -> None:
    run(build, text, tmp_path, 2)


@pytest.mark.slow
def test_ten_kills(build: Build, text: Path, tmp_path: Path) -> None:
    run(build, text, tmp_path, 10)
