"""dfq export and dfq inspect from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dfrot.export.fit import SCHEMES
from dfrot.export.targets import TARGETS


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def dfq() -> Callable[..., Ran]:
    from dfrot_cli.main import main

    def run(*arguments: object) -> Ran:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


def test_the_list_has_a_row_for_every_scheme(dfq: Callable[..., Ran]) -> None:
    shown = dfq("export", "--list")
    assert shown.code == 0
    assert all(scheme in shown.out for scheme in SCHEMES)
    matrix = json.loads(dfq("export", "--list", "--json").out)
    assert set(matrix) == set(SCHEMES)
    assert all(set(row) == set(TARGETS) for row in matrix.values())
    assert matrix["w4a16-g32"]["gguf"]["cell"] == "Q4_0"
    assert matrix["w4a4kv4"]["gptq"]["instead"] == "w4a16"


@pytest.mark.parametrize("target", TARGETS)
def test_export_then_inspect(target: str, dfq: Callable[..., Ran], pack: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = dfq("export", "--model", pack("w4a16-g32"), "--to", target, "--out", out)
    assert ran.code == 0
    assert f"wrote {out}" in ran.out
    facts = json.loads(dfq("inspect", out, "--json").out)
    assert facts["kind"].lower().startswith(target)
    assert "loads in" in dfq("inspect", out).out
    again = dfq("export", "--model", pack("w4a16-g32"), "--to", target, "--out", out)
    assert again.code == 2
    assert "already exists" in again.err
    assert dfq("export", "--model", pack("w4a16-g32"), "--to", target, "--out", out, "--resume").code == 0


def test_refusals_are_one_line_and_exit_code_2(
    dfq: Callable[..., Ran], pack: Callable[[str], Path], tmp_path: Path
) -> None:
    model = pack("w4a4kv4")
    wrong: list[tuple[object, ...]] = [
        ("--model", model, "--to", "gguf", "--out", tmp_path / "x"),
        ("--model", model, "--to", "onnx", "--out", tmp_path / "x"),
        ("--model", model, "--out", tmp_path / "x"),
        ("--model", model, "--to", "gptq", "--scheme", "w4a16", "--dtype", "f16", "--out", tmp_path / "x"),
        ("--model", model, "--to", "gguf", "--scheme", "w4a16", "--dtype", "f8", "--out", tmp_path / "x"),
        ("--model", model, "--to", "compressed-tensors", "--online-r4", "--out", tmp_path / "x"),
    ]
    for arguments in wrong:
        ran = dfq("export", *arguments)
        assert ran.code == 2, arguments
        assert len(ran.err.strip().splitlines()) == 1, arguments
        assert not (tmp_path / "x").exists()
    assert "--scheme w4a16" in dfq("export", *wrong[0]).err
    assert dfq("inspect", tmp_path / "none.gguf").code == 2


def test_a_plan_writes_nothing(dfq: Callable[..., Ran], pack: Callable[[str], Path], tmp_path: Path) -> None:
    ran = dfq("export", "--model", pack("w4a16-g32"), "--to", "gguf", "--out", tmp_path / "x", "--plan")
    assert ran.code == 0
    assert "plan: dfq export" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_check_compares_every_cell(
    dfq: Callable[..., Ran], dense: Path, pack: Callable[[str], Path], tmp_path: Path
) -> None:
    """On two schemes of the tiny model (the command runs them all), then on a packed checkpoint as it is."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("compressed_tensors")
    from dfrot.export.check import check_all

    text = tmp_path / "text.txt"
    text.write_text("the thin thing in the inn\n" * 40)
    report = check_all(dense, tmp_path / "check", str(text), 64, 2, schemes=("w4a16-g32", "w4a4-sym"))
    rows: list[dict[str, Any]] = report["rows"]
    assert len(rows) == 2 * len(TARGETS)
    assert [row["target"] for row in rows if row["refused"]] == ["gguf", "gptq"]
    assert all(row["match"] for row in rows if not row["refused"])
    shown = (tmp_path / "check/check.md").read_text()
    assert "| w4a16-g32 | pack-quantized: " in shown
    assert "no (weights only): w4a16 |" in shown
    assert not (tmp_path / "check/work").exists()
    options = ("--dataset", text, "--seqlen", 64, "--windows", 2, "--json", "--out", tmp_path / "own")
    own = json.loads(dfq("export", "--model", pack("w4a16-g32-wasym"), "--check", *options).out)
    assert [(row["scheme"], row["match"]) for row in own["rows"]] == [("w4a16-g32-wasym", True)] * len(TARGETS)
