from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
TIMED = {"tokens_per_second", "ranks"}


def figures(report: Any) -> Any:
    """A report without what differs from run to run."""
    if isinstance(report, dict):
        return {key: figures(value) for key, value in report.items() if key not in TIMED}
    return [figures(item) for item in report] if isinstance(report, list) else report


@pytest.mark.parametrize("kind", [("ppl", "--kl"), pytest.param(("kl",), marks=pytest.mark.slow)])  # three runs more
def test_ranks_measure_what_one_process_does(
    small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, run: Run, kind: tuple[str, ...]
) -> None:
    models = ("--model", small_llama("a"), "--model", small_llama("b", rope_theta=500.0))
    command = ("eval", *kind, *models, "--dataset", text_file, "--seqlen", 24, "--windows", 9, "--batch", 2)
    (alone,) = run(1, *command, "--json", "--threads", 1)
    ended = run(2, *command, "--json", "--threads", 1, "--out", tmp_path / "report.json")
    report = json.loads(ended[0].out)
    assert figures(report) == figures(json.loads(alone.out))
    assert report["results"][1]["kl"] > 1e-4, "two models that differ"
    assert len(report["ranks"]) == 2
    assert figures(json.loads((tmp_path / "report.json").read_text())) == figures(report)
