"""dfq outliers on the command line: one screen, one document, one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def dfq(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    from dfrot_cli.main import main

    monkeypatch.setattr("dfrot_cli.show.QUIET_EVERY", 1e9)
    return lambda *words: CliRunner().invoke(main, ["outliers", *map(str, words)])


def test_json_is_one_document(
    dfq: Callable[..., Any], small_llama: MakeCheckpoint, text_file: Path, massive_weight: SimpleNamespace
) -> None:
    ran = dfq(
        small_llama(change=massive_weight.change), "--dataset", text_file, "--seqlen", 64, "--json", "--rounds", 2
    )
    assert ran.exit_code == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["massive"]["channels"][0]["channel"] == massive_weight.row
    assert report["measured"] is None


def test_the_summary_fits_a_screen(
    dfq: Callable[..., Any], small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    ran = dfq(
        small_llama(),
        "--dataset",
        text_file,
        "--seqlen",
        64,
        "--rounds",
        2,
        "--out",
        tmp_path / "out",
        "--no-perplexity",
    )
    assert ran.exit_code == 0, ran.stderr
    assert len(ran.stdout.splitlines()) <= 40
    assert "massive activations: 0 channels" in ran.stdout
    assert (tmp_path / "out/report.html").is_file()
    again = dfq(small_llama("second"), "--dataset", text_file, "--seqlen", 64, "--out", tmp_path / "out")
    assert again.exit_code == 2
    assert "already exists" in again.stderr


def test_the_recipe_is_measured_beside_the_default(
    dfq: Callable[..., Any], small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    long = tmp_path / "long.txt"
    long.write_text(text_file.read_text() * 3)
    model = small_llama(max_position_embeddings=4096)
    ran = dfq(model, "--dataset", long, "--seqlen", 64, "--rounds", 2, "--out", tmp_path / "out", "--json")
    assert ran.exit_code == 0, ran.stderr
    measured = json.loads(ran.stdout)["measured"]
    assert measured["bf16"] > 1
    assert measured["recipes"]["default"]["perplexity"] > 1
    assert not (tmp_path / "out/work").exists()


def test_two_models_are_compared(
    dfq: Callable[..., Any], small_llama: MakeCheckpoint, text_file: Path, massive_weight: SimpleNamespace
) -> None:
    ran = dfq(
        small_llama("a", change=massive_weight.change),
        small_llama("b"),
        "--dataset",
        text_file,
        "--seqlen",
        64,
        "--rounds",
        2,
    )
    assert ran.exit_code == 0, ran.stderr
    assert "massive activation channels" in ran.stdout


def test_plan_touches_nothing(
    dfq: Callable[..., Any], small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    ran = dfq(small_llama(), "--dataset", text_file, "--plan", "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Missing argument"),
        (("a", "b", "c"), "one to measure or two to compare"),
        (("nothing-here",), "no such folder"),
        (("MODEL", "--ratio", "0"), "--ratio 0.0: must be above 0"),
        (("MODEL", "--channel", "nan"), "--channel nan: must be above 0"),
        (("MODEL", "--seqlen", "4"), "at least 8"),
        (("MODEL", "--seqlen", "90000"), "too short"),
        (("GEMMA",), "cannot be measured"),
    ],
)
def test_bad_input_is_one_line(
    dfq: Callable[..., Any], small_llama: MakeCheckpoint, text_file: Path, words: tuple[str, ...], message: str
) -> None:
    folders: dict[str, Callable[[], Path]] = {
        "MODEL": small_llama,
        "GEMMA": lambda: small_llama("gemma", model_type="gemma2", head_dim=8, tie_word_embeddings=True),
        **{name: (lambda name=name: small_llama(name)) for name in "abc"},  # type: ignore[misc]
    }
    given = [str(folders[word]()) if word in folders else word for word in words]
    ran = dfq(*given, "--dataset", text_file)
    assert ran.exit_code == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_fix_says_what_it_cost(
    dfq: Callable[..., Any], small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: Any
) -> None:
    words = (
        "fix",
        small_llama(change=massive_weight.change),
        "--dataset",
        text_file,
        "--seqlen",
        64,
        "--eval-seqlen",
        32,
        "--windows",
        2,
    )
    ran = dfq(*words, "--fix", "massive:zero", "--no-quantized", "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.stderr
    assert "massive:zero" in ran.stdout
    assert "another function" in ran.stdout
    assert (tmp_path / "out/model.safetensors").is_file()
    plan = dfq(*words, "--search", "--plan", "--json", "--out", tmp_path / "second")
    assert json.loads(plan.stdout)["settings"]["search"] is True
    for wrong, message in (
        ((), "give --fix"),
        (("--fix", "massive:cube"), "nearest: massive"),
        (("--fix", "gains:mean"), "no channel"),
    ):
        ran = dfq(*words, *wrong, "--no-quantized", "--out", tmp_path / "third")
        assert ran.exit_code == 2, ran.stdout
        assert message in ran.stderr
        assert not (tmp_path / "third").exists()
