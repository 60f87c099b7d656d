"""The command line's contract: names, options, exit codes, one line per expected error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dfrot.errors import GateError, InputError
from dfrot_cli.grouped_help import EVERY, GroupedCommand
from dfrot_cli.main import COMMANDS, main

COMMON = {"--seed", "--device", "--threads", "--json", "--plan", "--resume", "--no-resume", "--overwrite"}


def leaves() -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, by its full name."""

    def below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield name, command
            return
        context = click.Context(command)
        for inner in command.list_commands(context):
            leaf = command.get_command(context, inner)
            assert leaf is not None
            yield from below(f"{name} {inner}".strip(), leaf)

    yield from below("", main)


def test_help_names_every_command(dfq: Any) -> None:
    ran = dfq("--help")
    assert ran.code == 0
    assert all(f"  {name} " in ran.out for name in COMMANDS)
    wanted = {"rotate", "calibrate", "quantize", "eval", "draft", "outliers", "compare", "models", "doctor", "bench"}
    assert set(COMMANDS) >= wanted | {"run", "generate", "serve", "report"}


def test_the_promised_command_shapes() -> None:
    found = {name: {option for param in leaf.params for option in param.opts} for name, leaf in leaves()}
    assert {"--model", "--method", "--dataset", "--seqlen", "--out", "--gamma", "--massive-rule"} <= found["rotate"]
    assert {"--model", "--dataset", "--samples", "--seqlen", "--out"} <= found["calibrate"]
    assert {"--model", "--calibration", "--scheme", "--algorithm", "--out", "--keep", "--fake"} <= found["quantize"]
    assert {"--model", "--dataset", "--seqlen", "--fake"} <= found["eval ppl"]
    assert {"eval ppl", "bench rotate"} <= set(found)


@pytest.mark.parametrize(("name", "command"), leaves())
def test_every_command_takes_the_common_options(name: str, command: click.Command) -> None:
    options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    assert options >= COMMON, f"dfq {name} lacks {sorted(COMMON - options)}"
    assert command.help, f"dfq {name} says nothing of itself"


@pytest.mark.parametrize(("name", "command"), leaves())
def test_help_shows_every_option_once_under_headings(name: str, command: click.Command) -> None:
    assert isinstance(command, GroupedCommand), f"dfq {name}"
    params = [param.name for param in command.params]
    headed = [param for names in command.sections.values() for param in names]
    assert len(set(headed)) == len(headed)
    assert set(headed) <= set(params), f"dfq {name} has headings for options that it lacks"
    text = command.get_help(click.Context(command, info_name=name))
    lines = text[text.index("\nOptions") :].splitlines()
    for flag in [param.opts[0] for param in command.params if isinstance(param, click.Option) and not param.hidden]:
        assert sum(line.split(",")[0].split(" ")[:3] == ["", "", flag] for line in lines) == 1, flag
    assert not any(line.startswith("  DIR") for line in lines)  # arguments stand in the usage
    assert text.index(EVERY) < text.index("  --seed N")
    assert "RANGE" not in text


@pytest.mark.parametrize("arguments", [["turn"], ["rotate"], ["rotate", "--model", "x", "--out", "y", "--method", "z"]])
def test_wrong_usage_exits_2(dfq: Any, arguments: list[str]) -> None:
    ran = dfq(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_the_nearest_command_is_shown(dfq: Any) -> None:
    assert "No such command 'qantize'. Did you mean 'quantize'?" in dfq("qantize").err
    assert "No such command 'pl'. Did you mean 'ppl'?" in dfq("eval", "pl").err


@pytest.mark.parametrize(("error", "code"), [(InputError("a: b;\n c"), 2), (GateError("layer 3 differs"), 1)])
def test_expected_errors_are_one_line(
    dfq: Any, monkeypatch: pytest.MonkeyPatch, make: Any, text: Path, tmp_path: Path, error: Exception, code: int
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("dfrot.stages.rotate.run.rotate", fail)
    ran = dfq("rotate", "--model", make(), "--dataset", text, "--out", tmp_path / "out")
    assert ran.code == code
    assert ran.err == "Error: " + " ".join(str(error).split()) + "\n"


def test_what_a_file_system_refuses_is_one_line(dfq: Any, make: Any, text: Path, tmp_path: Path) -> None:
    out = tmp_path / ("x" * 300)
    for command in (("rotate", "--out", out, "--plan"), ("eval", "ppl", "--out", out)):
        ran = dfq(*command, "--model", make(command[0]), "--dataset", text, "--seqlen", 32)
        assert ran.code == 2
        assert len(ran.err.strip().splitlines()) == 1, ran.err
        assert "File name too long" in ran.err


def test_interruption_exits_130(dfq: Any, monkeypatch: pytest.MonkeyPatch, make: Any, text: Path) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dfrot.stages.evaluate.perplexity.evaluate", interrupt)
    ran = dfq("eval", "ppl", "--model", make(), "--dataset", text)
    assert ran.code == 130
    assert len(ran.err.strip().splitlines()) == 1


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, make: Any, text: Path) -> None:
    def bug(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("dfrot.stages.evaluate.perplexity.evaluate", bug)
    result = CliRunner().invoke(main, ["eval", "ppl", "--model", str(make()), "--dataset", str(text)])
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_no_cuda_is_said(dfq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ran = dfq("doctor", "--device", "cuda")
    assert ran.code == 2
    assert "--device cuda" in ran.err
    assert "--device cpu" in ran.err


def test_doctor_names_an_implementation_for_every_operator(dfq: Any) -> None:
    from dfrot_kernels import ops
    from dfrot_kernels.which import CALLS

    report = dfq("doctor", "--json").json
    assert {row["op"] for row in report["operators"]} == {*ops.SCHEMAS, *CALLS}
    assert all(row["implementation"] and row["reason"] for row in report["operators"])
    assert "torch" in report["versions"]
    table = dfq("doctor")
    assert table.code == 0
    assert "hadamard" in table.out


def test_threads_are_set(dfq: Any) -> None:
    import torch

    assert dfq("doctor", "--threads", 1, "--json").code == 0
    assert torch.get_num_threads() == 1


def test_bench_writes_what_it_shows(dfq: Any, tmp_path: Path) -> None:
    small = ("bench", "rotate", "--width", 64, "--rows", 256, "--rounds", 2)
    ran = dfq(*small, "--out", tmp_path / "race")
    assert ran.code == 0, ran.err
    assert "sooner" in ran.out
    assert (tmp_path / "race" / "refinement.json").is_file()
    assert dfq(*small, "--out", tmp_path / "race").code == 2
    report = dfq(*small, "--figure", "--out", tmp_path / "figure", "--json").json
    assert set(report["means"]) == {"symmetric", "asymmetric"}
    assert (tmp_path / "figure" / "figure.png").read_bytes().startswith(b"\x89PNG")
