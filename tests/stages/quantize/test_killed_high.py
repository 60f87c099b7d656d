"""Kill -9 at ten moments of a run with a budget, a key shift and tuning: each resumes to the same bytes.

As in test_killed.py one helper process imports everything and forks; its children compute, it never does. It waits for
what a run has reached, not for the clock, so that a busy machine is killed at the same moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import dfrot.runtime.block_runner, dfrot.data.tokenizer
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize import effort
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.tune.settings import TuneSettings

root, text, moments = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
source = random.Random(0)
os.chdir(Path(text).parent)
scheme = QuantScheme.parse("w4a4kv4")
effort.TuneSettings = lambda **given: TuneSettings(batch=2, seqlen=40, held_out=2, evaluations=4, **given)
settings = QuantizeSettings(scheme, budget=5.0, effort="high", tune_steps=40)

def start(job):
    pid = os.fork()
    if pid == 0:
        try:
            job()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid

def finish(pid):
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

finish(start(lambda: calibrate(root / "model", root / "cal", CalibrateSettings(text, samples=6, seqlen=40))))
finish(start(lambda: quantize(root / "model", root / "cal", root / "exact", settings)))

def units(folder):
    journal = folder / "journal.jsonl"
    return [json.loads(line)["unit"] for line in journal.read_text().splitlines()] if journal.exists() else []

def state(folder):
    try:
        return (folder / "state.safetensors").stat().st_mtime_ns
    except FileNotFoundError:
        return None

reached = []
for number, (finished, saved) in enumerate(moments):
    out = root / f"killed{number}"
    folder = root / f".{out.name}.partial"
    job = lambda: quantize(root / "model", root / "cal", out, settings)
    pid, states = start(job), set()
    while not out.exists() and (len(units(folder)) < finished or len(states) < saved):
        time.sleep(0.001)
        states |= {state(folder)} - {None}
    time.sleep(source.uniform(0, 0.02))
    os.kill(pid, signal.SIGKILL)
    reached.append(units(folder) if finish(pid) else None)
    if not out.exists():
        finish(start(job))
print(json.dumps(reached))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# units that are finished when the run is killed, and training states that were saved
UNITS = ["budget", "key-shift", "dense", "layer-00000", "layer-00001", "layer-00002", "head"]
MOMENTS = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (7, 0), (7, 1), (7, 2), (7, 3)]


@pytest.mark.slow  # eleven runs to the end, in processes: most of a minute
def test_ten_moments_of_a_tuned_run(build: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    build(tmp_path / "model", online=True)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(text), json.dumps(MOMENTS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    for (finished, _), units in zip(MOMENTS, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert units is not None, "the run ended before it was killed"
        assert units == UNITS[: len(units)]
        assert len(units) >= finished
    exact = contents(tmp_path / "exact")
    assert "tuning" in json.loads(exact["stage.json"])
    for number in range(len(MOMENTS)):
        resumed = contents(tmp_path / f"killed{number}")
        assert [name for name in exact.keys() | resumed.keys() if exact.get(name) != resumed.get(name)] == []
    assert not list(tmp_path.glob(".killed*"))
