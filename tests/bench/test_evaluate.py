"""dfq bench evaluate on the reference model: both ways compute one loss, and the result has its schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from dfrot.bench import evaluate
from dfrot.bench.evaluate import DFQ, PLAIN, bench_evaluate
from dfrot.bench.settings import EvaluateBenchSettings
from dfrot.hub import resolve_model
from dfrot_cli.main import main

QUICK: dict[str, Any] = {"seqlen": 33, "windows": 3, "batch": 2, "repeats": 1}


@pytest.fixture(autouse=True)
def _short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = evaluate.load_text

    def short(dataset: str, split: Any) -> Any:
        whole = text(dataset, split)
        return type(whole)(**{**vars(whole), "text": whole.text[:2000]})

    monkeypatch.setattr(evaluate, "load_text", short)


def test_both_ways_compute_one_loss() -> None:
    result = bench_evaluate(resolve_model("reference"), EvaluateBenchSettings(dtype="float32", **QUICK))
    assert json.loads(json.dumps(result)) == result
    dfq, plain = result["results"][DFQ], result["results"][PLAIN]
    assert dfq["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert result["speedup"] == pytest.approx(plain["seconds"]["median"] / dfq["seconds"]["median"])
    assert dfq["tokens_per_s"] == pytest.approx(99 / dfq["seconds"]["median"])
    assert result["windows"] == 3


def test_the_command_shows_a_table() -> None:
    options = [part for name, value in QUICK.items() for part in (f"--{name}", str(value))]
    shown = CliRunner().invoke(main, ["bench", "evaluate", "--model", "reference", *options])
    assert shown.exit_code == 0, shown.output
    assert DFQ in shown.output
    assert PLAIN in shown.output
    assert "x transformers' rate" in shown.output
