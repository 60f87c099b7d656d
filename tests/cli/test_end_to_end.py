"""The whole pipeline through the command on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfrot.files import read_json


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def run(dfq: Any, make: Any, text: Path, tmp_path: Path) -> Any:
    """run(command, out, *options) in one folder, with the text as dataset."""
    make("model")

    def go(command: str, *options: object) -> Any:
        given = [text if option == "TEXT" else option for option in options]
        return dfq(*command.split(), *given)

    return go


def test_pipeline(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rotated, stats, packed = (tmp_path / "run" / name for name in ("model", "rotated", "stats", "packed"))
    (tmp_path / "run").mkdir()
    (tmp_path / "model").rename(model)
    data = ("--dataset", "TEXT", "--seqlen", 64)

    ran = run("rotate", "--model", model, *data, "--out", rotated)
    assert ran.code == 0, ran.err
    assert str(rotated) in ran.out
    assert {"config.json", "model.safetensors", "rotation.safetensors", "stage.json"} <= set(tree(rotated))

    ran = run("calibrate", "--model", rotated, *data, "--samples", 3, "--out", stats)
    assert ran.code == 0, ran.err
    assert "down_proj" in ran.out
    assert str(stats) in ran.out

    ran = run("calibrate", "--model", rotated, *data, "--samples", 3, "--no-statistics", "--out", tmp_path / "tokens")
    assert ran.code == 0, ran.err
    assert "down_proj" not in ran.out

    ran = run("quantize", "--model", rotated, "--calibration", stats, "--scheme", "w4a4kv4", "--out", packed, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["out"] == str(packed)
    assert ran.json["scheme"] == "w4a4kv4"
    assert read_json(packed / "config.json")["quantization_config"]["quant_method"] == "dfq"
    assert (packed / "model.safetensors").stat().st_size < (model / "model.safetensors").stat().st_size

    ran = run("eval ppl", "--model", model, "--model", packed, *data, "--windows", 4, "--json")
    assert ran.code == 0, ran.err
    first, second = ran.json["results"]
    assert [first["model"], second["model"]] == [str(model), str(packed)]
    for result in (first, second):
        assert result["perplexity"] > 1
        assert result["tokens"] == 4 * 64
        assert len(result["ci"]) == 2
        assert result["protocol"]["id"].startswith("gptq-ppl")
    assert second["perplexity"] < 2 * first["perplexity"]

    # in the folder that the run made, without naming anything: 16-bit checkpoints first
    monkeypatch.chdir(tmp_path / "run")
    ran = run("eval ppl", *data, "--windows", 2, "--json")
    assert [result["name"] for result in ran.json["results"]] == ["model", "rotated", "packed"]
    monkeypatch.chdir(packed)
    ran = run("eval ppl", *data, "--windows", 2, "--out", tmp_path / "report.json")
    assert ran.code == 0
    assert "w4a4kv4" in ran.out
    assert read_json(tmp_path / "report.json")["results"][0]["perplexity"] > 1


def test_plan_touches_nothing(run: Any, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    model, out = tmp_path / "model", tmp_path / "out"
    for command, options in (
        ("rotate", ["--dataset", "TEXT", "--seqlen", 32]),
        ("calibrate", ["--dataset", "TEXT"]),
        ("quantize", ["--algorithm", "rtn"]),
        ("compare", ["--dataset", "TEXT"]),
        ("eval ppl", ["--dataset", "TEXT"]),
    ):
        ran = run(command, "--model", model, *options, "--out", out, "--plan", "--json")
        assert ran.code == 0, ran.err
        assert ran.json["command"] == command
        assert ran.json["output"] == str(out)
        assert ran.json["state"]
        assert run(command, "--model", model, *options, "--out", out, "--plan").code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_interrupted_rotation_resumes_to_the_same_bytes(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--model", tmp_path / "model", "--method", "hadamard", "--dataset", "TEXT", "--seqlen", 32)
    assert run("rotate", *options, "--out", tmp_path / "straight").code == 0

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dfrot.stages.rotate.run.gate", interrupt)
        ran = run("rotate", *options, "--out", tmp_path / "resumed")
    assert ran.code == 130
    assert not (tmp_path / "resumed").exists()
    plan = run("rotate", *options, "--out", tmp_path / "resumed", "--plan", "--json").json
    assert "continue" in plan["state"]
    assert run("rotate", *options, "--out", tmp_path / "resumed").code == 0
    assert tree(tmp_path / "resumed") == tree(tmp_path / "straight")
    # a finished result of the same request is enough for --resume, and is replaced only when told to
    assert run("rotate", *options, "--out", tmp_path / "resumed", "--resume").code == 0
    assert run("rotate", *options, "--out", tmp_path / "resumed").code == 2
    assert run("rotate", *options, "--out", tmp_path / "resumed", "--overwrite").code == 0
    assert tree(tmp_path / "resumed") == tree(tmp_path / "straight")
