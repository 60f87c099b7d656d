"""Two processes that train together do what one does, within rounding; unequal samples included."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot.draft.parallel import Group
from dfrot_cli.main import main

OPTIONS = ("--held-out", "2", "--samples", "8", "--seqlen", "64", "--batch", "4", "--epochs", "2", "--evaluations", "2")


def arguments(data: Path, out: Path) -> list[str]:
    return ["draft", "train", "--model", "reference", "--dataset", str(data), "--out", str(out), *OPTIONS, "--json"]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations whose answers differ in length: what a process's own mean would get wrong."""
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    rows = []
    for number in range(60):
        answer = "import os\n" + "x = 1\n" * (number % 9)
        turns = [{"role": "user", "content": f"write {number}"}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"messages": turns}))
    file.write_text("\n".join(rows))
    return file


def curve(out: Path) -> tuple[list[float], list[float]]:
    """Training losses and held-out divergences."""
    history: list[dict[str, Any]] = json.loads((out / "stage.json").read_text())["history"]
    return [record["loss"] for record in history[1:]], [kl for record in history for kl in record["held_out_kl"]]


def test_two_processes_draw_the_curve_of_one(chats: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = "from dfrot_cli.main import main; main()"
    command = [sys.executable, "-c", code, *arguments(chats, tmp_path / "two"), "--threads", "1"]
    running = [
        subprocess.Popen(command, env={**there, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    alone = CliRunner().invoke(main, arguments(chats, tmp_path / "one"), catch_exceptions=False)
    assert alone.exit_code == 0, alone.output
    told = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert json.loads(told[0][0])["history"], "the first process speaks"
    assert told[1] == (b"", b""), "the second one does not"
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    for ours, theirs in zip(one, two):  # sums of bfloat16 products in another order, through two epochs of Adam
        assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), rtol=1e-2), (ours, theirs)
    assert len(one[0]) == 2
    assert one[0][0] != pytest.approx(one[0][1], rel=3e-2), "a curve that does not move would prove nothing"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_launcher_that_says_half_is_refused(
    chats: Path, tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in known.items():
        monkeypatch.delenv(name, raising=False)
        if name != missing:
            monkeypatch.setenv(name, value)
    done = CliRunner().invoke(main, arguments(chats, tmp_path / "out"))
    assert done.exit_code == 2
    assert "torchrun" in done.stderr
    assert done.stderr.count("\n") == 1


def test_shares_are_the_whole() -> None:
    index = torch.arange(7)
    parts = []
    for rank in range(3):
        group = Group()
        group.rank, group.size = rank, 3
        parts.append(group.share(index))
    assert sorted(torch.cat(parts).tolist()) == index.tolist()
