from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot_cli.main import main

PLACE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    "command",
    [
        ("doctor",),
        ("generate", "--model", "reference", "--prompt", "text"),
        ("outliers", "fix", "reference", "--out", "out"),
        ("eval", "speed", "--model", "a"),
        ("run", "recipe.yaml"),
    ],
)
def test_a_command_that_cannot_be_shared_refuses(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("{}")
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "WORLD_SIZE is 2" in result.stderr
    assert "works in a single process" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_an_incomplete_environment_is_refused(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLACE.items():
        monkeypatch.delenv(name, raising=False)
        if name != missing:
            monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["calibrate", "--model", "reference", "--out", "out"])
    assert result.exit_code == 2
    assert "start with torchrun" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--processes", 3, "--device", "cpu,cpu"), "--processes 3 and 2 devices"),
        (("--device", "cuda:0,cuda:1"), "--device cuda:0: no usable CUDA device"),
        (("--device", "cuda,cuda"), "say which"),
        (("--device", "tpu"), "is no device"),
    ],
)
def test_processes_that_cannot_be_started_are_refused(options: tuple[Any, ...], message: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    result = CliRunner().invoke(main, ["calibrate", "--model", "reference", "--out", "out", *map(str, options)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_launcher_of_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["calibrate", "--model", "reference", "--out", "out", "--processes", "3"])
    assert result.exit_code == 2
    assert "a launcher started 2 processes, 3 are asked for" in result.stderr


def test_a_list_of_devices_is_refused_by_a_command_of_one_process() -> None:
    result = CliRunner().invoke(main, ["doctor", "--device", "cpu,cpu"])
    assert result.exit_code == 2
    assert "works on one device" in result.stderr


def dfq(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    program = [sys.executable, "-m", "dfrot_cli", *map(str, arguments)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(program, env=alone, capture_output=True, text=True, timeout=240)


def test_a_command_starts_its_own_processes(
    small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, same: Callable[[Path, Path], None]
) -> None:
    shape = ("--model", small_llama(), "--dataset", text_file, "--samples", 20, "--seqlen", 32)
    assert dfq("calibrate", *shape, "--out", tmp_path / "one").returncode == 0
    ended = dfq("calibrate", *shape, "--out", tmp_path / "two", "--device", "cpu,cpu", "--json")
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(ended.stdout)["ranks"]) == 2
    same(tmp_path / "one", tmp_path / "two")


def test_its_processes_say_why_they_fail(tmp_path: Path) -> None:
    ended = dfq("calibrate", "--model", tmp_path / "nowhere", "--out", tmp_path / "out", "--processes", 2)
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_error_of_all_ranks_is_said_once(tmp_path: Path, start: Callable[..., Any]) -> None:
    command = ("calibrate", "--model", tmp_path / "nowhere", "--out", tmp_path / "out")
    ended = start(2, *command).wait()
    assert [process.code for process in ended] == [2, 2]
    assert ended[0].err.startswith("Error: ")
    assert "nowhere" in ended[0].err
    assert ended[0].err.count("\n") == 1
    assert ended[1].err == ""
    assert not (tmp_path / "out").exists()
