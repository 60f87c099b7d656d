"""Seconds of `calibrate`, `quantize` and `eval ppl` on one rank and on two, one thread each, on this machine.

Blocks are timed between two entries of a stage's journal, so that start-up, key shift and head are left out; a stage
is stopped when it has as many blocks as are asked for. eval is timed by what it reports. Every rank is pinned to a core
of its own. Run it on a machine that does nothing else.

    python recipes/ranks/speedup.py --model rotated --dataset wikitext-2-raw --samples 64 --seqlen 1024
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = "import os; os.sched_setaffinity(0, {int(os.environ.pop('CORE'))}); from dfrot_cli.main import main; main()"
LOOK = 0.01  # seconds between two looks at a journal
BEFORE = ('"embed"', '"dense"')  # the units just before the first block
STAGES = ("calibrate", "quantize", "eval")


def start(ranks: int, arguments: list[str]) -> list[subprocess.Popen[str]]:
    """Start a command on as many ranks, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    for rank in range(ranks):
        own = {"OMP_NUM_THREADS": "1", "CORE": str(cores[rank]), **({**place, "RANK": str(rank)} if ranks > 1 else {})}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments],
                env={**os.environ, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    return processes


def end(processes: list[subprocess.Popen[str]]) -> None:
    """Stop processes that were started here."""
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def block_seconds(ranks: int, arguments: list[str], out: Path, blocks: int) -> float:
    """The median time of a block, over the first `blocks`."""
    journal = out.parent / f".{out.name}.partial" / "journal.jsonl"
    processes = start(ranks, [*arguments, "--out", str(out)])
    times: list[float] = []  # of the entries from the one before the first block on
    try:
        while len(times) <= blocks:
            if any(process.poll() for process in processes):
                raise SystemExit(f"{arguments[0]} failed on {ranks} ranks")
            units = journal.read_text() if journal.exists() else ""
            done = units.count('"layer-') + any(unit in units for unit in BEFORE)
            times += [time.monotonic()] * (done - len(times))
            time.sleep(LOOK)
    finally:
        end(processes)
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


def eval_seconds(ranks: int, arguments: list[str]) -> float:
    """Seconds of the windows, as eval reports them."""
    processes = start(ranks, [*arguments, "--json"])
    report = json.loads(processes[0].communicate()[0])
    end(processes)
    (result,) = report["results"]
    return float(result["tokens"] / result["tokens_per_second"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a rotated checkpoint")
    parser.add_argument("--calibration", help="of it; else it is made here")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--samples", default="64")
    parser.add_argument("--seqlen", default="1024")
    parser.add_argument("--windows", default="16", help="of eval")
    parser.add_argument("--blocks", type=int, default=3, help="that are timed")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    given = parser.parse_args()
    print("| stage | 1 rank | 2 ranks | times as fast |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        text = ["--dataset", given.dataset, "--seqlen", given.seqlen]
        commands = {
            "calibrate": ["calibrate", "--model", given.model, *text, "--samples", given.samples],
            "quantize": ["quantize", "--model", given.model, "--calibration", str(given.calibration)],
            "eval": ["eval", "ppl", "--model", given.model, *text, "--windows", given.windows],
        }
        for stage in given.stages:
            if stage == "quantize" and given.calibration is None:
                made = f"{folder}/calibration"
                subprocess.run(["dfq", *commands["calibrate"], "--no-statistics", "--out", made], check=True)
                commands["quantize"][-1] = made
            seconds = [
                eval_seconds(ranks, commands[stage])
                if stage == "eval"
                else block_seconds(ranks, commands[stage], Path(folder) / f"{stage}{ranks}", given.blocks)
                for ranks in (1, 2)
            ]
            one, two = seconds
            print(f"| {stage} | {one:.2f} s | {two:.2f} s | {one / two:.2f} |", flush=True)


if __name__ == "__main__":
    main()
