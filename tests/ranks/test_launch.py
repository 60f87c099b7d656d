from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


def test_an_error_of_all_ranks_is_said_once(tmp_path: Path, start: Callable[..., Any]) -> None:
    command = ("calibrate", "--model", tmp_path / "nowhere", "--out", tmp_path / "out")
    ended = start(2, *command).wait()
    assert [process.code for process in ended] == [2, 2]
    assert ended[0].err.startswith("Error: ")
    assert "nowhere" in ended[0].err
    assert ended[0].err.count("\n") == 1
    assert ended[1].err == ""
    assert not (tmp_path / "out").exists()
