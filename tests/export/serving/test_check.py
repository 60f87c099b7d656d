"""`dfq export DIR --check`: engines in processes of their own, and what is said of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dfrot.data.text import load_text
from dfrot.errors import InputError
from dfrot.evaluate.tokens import WindowReader
from dfrot.export.check import quantize_by_rounding
from dfrot.export.run import export
from dfrot.export.serving import environments
from dfrot.export.serving.check import check_engines
from dfrot.export.serving.definition import define
from dfrot.export.serving.driving import last_error
from dfrot.export.settings import ExportCheckSettings
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

FAKE = Path(__file__).with_name("fake_driver.py")
LIMIT = 60.0


@pytest.fixture
def settings(tmp_path: Path) -> ExportCheckSettings:
    """Of a check whose engines lie below tmp_path/engines."""
    text = tmp_path / "text.txt"
    text.write_text("the thin thing in the inn\n" * 60)
    folder = tmp_path / "engines"
    return ExportCheckSettings(64, 2, str(text), engines=folder, new_tokens=4, time_limit=LIMIT)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, settings: ExportCheckSettings) -> Callable[[str], None]:
    """fake(behaviour): the engine `vllm` is set up, and is the fake driver."""

    def install(behaviour: str) -> None:
        engine = replace(environments.ENGINES["vllm"], script=str(FAKE), variables={"FAKE": behaviour})
        monkeypatch.setattr(environments, "ENGINES", {**environments.ENGINES, "vllm": engine})
        binaries = settings.engines / "vllm" / "bin"
        binaries.mkdir(parents=True, exist_ok=True)
        if not (binaries / "python").exists():
            (binaries / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
            (binaries / "python").chmod(0o755)
        (settings.engines / "vllm" / "installed.txt").touch()

    return install


def exported(pack: Callable[[str], Path], scheme: str, out: Path) -> Path:
    export(pack(scheme), "compressed-tensors", out)
    return out


def answer(folder: Path, bits: str, settings: ExportCheckSettings) -> str:
    """A file with what an engine computes from an export: `declared`, or `sixteen` if it ignores activations."""
    windows = WindowReader(load_text(settings.dataset, "test"), settings.seqlen, settings.windows).read(folder).windows
    definition = define(folder, windows, windows[0, :32], settings.new_tokens)
    losses = [window.tolist() for window in getattr(definition, bits)]
    file = folder.parent / f"{bits}.json"
    file.write_text(json.dumps({"losses": losses, "tokens": definition.tokens}))
    return str(file)


@pytest.mark.parametrize("scheme", ["w4a4-sym", "w4a8-sym"])
def test_an_engine_that_ignores_activations_is_found_out(
    scheme: str, fake: Callable[[str], None], settings: ExportCheckSettings, pack: Callable[[str], Path], tmp_path: Path
) -> None:
    """Also with 8-bit activations, whose perplexity hardly differs from that of 16-bit ones."""
    folder = exported(pack, scheme, tmp_path / "x")
    verdicts = {}
    for behaviour in ("declared", "sixteen"):
        fake(answer(folder, behaviour, settings))
        (row,) = check_engines(folder, ("vllm",), settings)["rows"]
        verdicts[behaviour] = (row["verdict"], row["kept"], round(row["share"], 6))
        assert row["linears"] == {"FakeKernel": 14}
        assert row["peak_bytes"] > 0
        assert row["same_tokens"] == [4, 4]
        assert isinstance(row["text"], str)
    assert verdicts == {"declared": ("as declared", True, 1.0), "sixteen": ("as W4A16", False, 0.0)}


def test_the_command_fails_where_other_bits_are_served(
    fake: Callable[[str], None], settings: ExportCheckSettings, pack: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = exported(pack, "w4a4-sym", tmp_path / "x")
    fake(answer(folder, "declared", settings))
    assert command(folder, settings).exit_code == 0
    fake(answer(folder, "sixteen", settings))
    ran = command(folder, settings, "--out", str(tmp_path / "report.json"))
    assert ran.exit_code == 1
    assert "vllm serves w4a4-sym as W4A16" in ran.stderr
    assert "as W4A16" in ran.stdout
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["share"] == pytest.approx(0.0)


def command(folder: Path, settings: ExportCheckSettings, *more: str) -> Result:
    from dfrot_cli.main import main

    options = ("--dataset", settings.dataset, "--seqlen", "64", "--windows", "2", "--engines", str(settings.engines))
    return CliRunner().invoke(main, ["export", str(folder), "vllm", "--check", *options, *more])


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("refuse", "NotImplementedError: no kernel for these weights"),
        ("nonsense", "its losses do not belong to the windows"),
        ("hang", "stopped after 3 s"),
    ],
)
def test_a_refusal_is_a_verdict_with_the_last_line(
    behaviour: str,
    message: str,
    fake: Callable[[str], None],
    settings: ExportCheckSettings,
    pack: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    fake(behaviour)
    limit = 3.0 if behaviour == "hang" else LIMIT
    folder = exported(pack, "w4a16-g32", tmp_path / "x")
    (row,) = check_engines(folder, ("vllm",), replace(settings, time_limit=limit))["rows"]
    assert row["verdict"] == "refused"
    assert message in row["detail"]
    assert row["seconds"] < LIMIT


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("Traceback:\n  x = 1\npkg.ConfigError: no such kernel\n[W] leaving\n", "pkg.ConfigError: no such kernel"),
        ("ValueError: Reasons:\n A: 8 bits\n B: no GPU\n C: no\n", "ValueError: Reasons: A: 8 bits B: no GPU"),
        ("ValidationError: 1 validation error for Config\n  bits=4, sym=False\n",
         "ValidationError: 1 validation error for Config bits=4, sym=False"),
        ("loading\ngone\n", "gone"),
        ("", None),
    ],
)  # fmt: skip
def test_the_line_that_names_an_error(log: str, message: str | None) -> None:
    """With what it announces; last lines that name none are left out."""
    assert last_error(log) == message


def test_what_is_not_set_up_is_said(settings: ExportCheckSettings, pack: Callable[[str], Path], tmp_path: Path) -> None:
    """A packed checkpoint is exported to every format that holds it; every engine that reads one is named."""
    rows = check_engines(pack("w4a16-g32"), (), settings)["rows"]
    assert {(row["engine"], row["verdict"]) for row in rows} == {(name, "not set up") for name in environments.ENGINES}
    assert {row["target"] for row in rows} == {"compressed-tensors", "gguf", "gptq"}
    refused = check_engines(pack("w4a4kv4"), (), settings)["rows"]
    assert {row["verdict"] for row in refused} == {"no export"}
    with pytest.raises(InputError, match="no such engine; choose of vllm"):
        check_engines(exported(pack, "w4a16-g32", tmp_path / "x"), ("exllama",), settings)


def test_an_export_with_an_online_rotation_is_checked(
    fake: Callable[[str], None], settings: ExportCheckSettings, dense: Path, tmp_path: Path
) -> None:
    """The folder's definition applies R4, as dfq's own runtime does."""
    rotation = RotateSettings(method="hadamard", dataset=settings.dataset, seqlen=64, gate=False)
    rotate(dense, tmp_path / "rotated", rotation)
    packed = quantize_by_rounding(tmp_path / "rotated", QuantScheme.parse("w4a16-g32"), tmp_path / "packed")
    export(packed, "compressed-tensors", tmp_path / "x", online_r4=True)
    fake(answer(tmp_path / "x", "declared", settings))
    (row,) = check_engines(tmp_path / "x", ("vllm",), settings)["rows"]
    assert (row["verdict"], row["scheme"]) == ("as declared", "w4a16-g32+R4")
    (row,) = check_engines(packed, ("vllm",), settings, ("compressed-tensors",), online_r4=True)["rows"]
    assert row["declared"] == pytest.approx(row["dfq"], rel=1e-3)


def test_engines_need_the_check(pack: Callable[[str], Path]) -> None:
    from dfrot_cli.main import main

    ran = CliRunner().invoke(main, ["export", str(pack("w4a16-g32")), "vllm"])
    assert ran.exit_code == 2
    assert "--check" in ran.stderr


def rows_of(folder: Path, engine: str, settings: ExportCheckSettings) -> list[dict[str, Any]]:
    if environments.find_environments(settings.engines, (engine,))[engine] is None:
        pytest.skip(f"{engine} is not set up: make engines")
    rows: list[dict[str, Any]] = check_engines(folder, (engine,), settings)["rows"]
    return rows


REAL = [
    ("vllm", "compressed-tensors", "w4a16-g32", "as declared"),
    ("vllm", "compressed-tensors", "w4a4-sym", "as W4A16"),
    ("transformers", "compressed-tensors", "w4a16-g32", "as declared"),
    ("transformers", "compressed-tensors", "w4a8-sym", "as declared"),
    ("llama.cpp", "gguf", "w4a16-g32", "as declared"),
    ("gptqmodel", "gptq", "w4a16-g32", "as declared"),
]


@pytest.mark.slow  # each starts an engine of its own: half a minute
@pytest.mark.parametrize(("engine", "target", "scheme", "verdict"), REAL)
def test_real_engines(
    engine: str,
    target: str,
    scheme: str,
    verdict: str,
    settings: ExportCheckSettings,
    pack: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    export(pack(scheme), target, tmp_path / "x")
    settings = replace(settings, engines=Path("build/engines"), time_limit=300.0)
    (row,) = rows_of(tmp_path / "x", engine, settings)
    assert row["verdict"] == verdict, row["detail"]
