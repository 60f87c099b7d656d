"""dfq eval kl, speed and tasks on tiny checkpoints, and dfq report over what they wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.evaluate.divergence import TokenDivergence
from dfrot.files import read_json


@pytest.fixture
def pair(dfq: Any, make: Any, text: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A 16-bit checkpoint and its 4-bit twin."""
    model, packed = make("model"), tmp_path / "packed"
    ran = dfq("quantize", "--model", model, "--algorithm", "rtn", "--scheme", "w4a16", "--out", packed)
    assert ran.code == 0, ran.err
    return model, packed


def test_kl_of_a_checkpoint_from_itself_and_from_its_twin(dfq: Any, pair: Any, text: Path, tmp_path: Path) -> None:
    model, packed = pair
    data = ("--dataset", text, "--seqlen", 64, "--windows", 4, "--batch", 3)
    ran = dfq("eval", "kl", "--model", model, "--model", model, "--model", packed, *data, "--json")
    assert ran.code == 0, ran.err
    base, same, twin = ran.json["results"]
    assert "kl" not in base
    assert (same["kl"], same["kl_max"], same["top1"], same["probability_change_rms"]) == (0, 0, 1, 0)
    assert same["perplexity"] == base["perplexity"]
    assert twin["kl"] > 0
    order = [twin["kl_quantiles"][q] for q in ("0.5", "0.9", "0.99", "0.999")] + [twin["kl_max"]]
    assert order == sorted(order)
    assert twin["kl_ci"][0] < twin["kl"] < twin["kl_ci"][1]
    assert twin["tokens"] == 4 * 63
    # the mean is that of dfq eval ppl --kl
    other = dfq("eval", "ppl", "--model", model, "--model", packed, *data, "--kl", "--json").json["results"][1]
    assert twin["kl"] == pytest.approx(other["kl"], rel=1e-5)
    assert twin["top1"] == pytest.approx(other["top1"], rel=1e-6)
    assert "99.9 %" in dfq("eval", "kl", "--model", model, "--model", packed, *data).out
    alone = dfq("eval", "kl", "--model", model, *data)
    assert alone.code == 2
    assert "twice" in alone.err


def test_divergence_against_its_definition() -> None:
    found = TokenDivergence(
        torch.tensor([[0.1, 0.3], [0.2, 0.4]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.zeros(2, 2)
    )
    told = found.summary()
    assert told["kl"] == pytest.approx(0.25)
    assert told["top1"] == 0.75
    assert told["kl_max"] == pytest.approx(0.4)


def test_speed_measures_every_checkpoint(dfq: Any, pair: Any, tmp_path: Path) -> None:
    model, packed = pair
    small = ("--prefill", 16, "--decode", 4, "--repeats", 2, "--no-memory")
    out = tmp_path / "speed.json"
    ran = dfq("eval", "speed", "--model", model, "--model", packed, *small, "--out", out)
    assert ran.code == 0, ran.err
    assert "decode tokens/s" in ran.out
    report = read_json(out)
    for result in report["results"]:
        assert result["prefill_tokens_per_second"] == pytest.approx(16 / result["prefill"]["median"])
        assert result["decode_tokens_per_second"] == pytest.approx(1 / result["decode"]["median"])
        assert result["memory"] is None
        least = result["weight_bytes_per_token"] / report["read_bytes_per_second"]
        assert result["read_share"] == pytest.approx(least / result["decode"]["median"])
    assert [result["scheme"] for result in report["results"]] == [None, "w4a16"]
    assert dfq("eval", "speed", "--model", model, *small, "--out", out).code == 2, "it is there already"


def test_report_puts_together_what_was_measured_alike(dfq: Any, pair: Any, text: Path, tmp_path: Path) -> None:
    model, packed = pair
    results = tmp_path / "results"
    results.mkdir()
    both = ("--model", model, "--model", packed)
    data = ("--dataset", text, "--seqlen", 64)
    assert dfq("eval", "ppl", *both, *data, "--windows", 4, "--out", results / "four.json").code == 0
    assert dfq("eval", "ppl", *both, *data, "--windows", 2, "--out", results / "two.json").code == 0
    assert dfq("eval", "kl", *both, *data, "--windows", 2, "--out", results / "kl.json").code == 0
    assert dfq("eval", "speed", *both, "--prefill", 8, "--decode", 2, "--repeats", 1, "--no-memory", "--out",
               results / "speed.json").code == 0  # fmt: skip
    (results / "other.json").write_text("[1]")
    table = dfq("report", results, "--json").json
    rows = {Path(row["checkpoint"]).name: row for row in table["rows"]}
    assert set(rows) == {"model", "packed"}
    base, kl = "/".join(model.parts[-2:]), read_json(results / "kl.json")["results"][1]["kl"]
    four, two = (read_json(results / name)["results"][1] for name in ("four.json", "two.json"))
    assert rows["packed"]["perplexity, words.txt 4x64"] == four["perplexity"]
    assert rows["packed"]["perplexity, words.txt 2x64"] == two["perplexity"]
    assert rows["packed"][f"KL from {base}, words.txt 2x64"] == pytest.approx(kl, rel=1e-5)
    assert rows["packed"]["decode 2"] > 0
    assert len(table["files"]) == 4

    # the same column with another value is a row of its own
    torch.manual_seed(1)
    changed = read_json(results / "two.json")
    changed["results"][1]["perplexity"] += 1
    (tmp_path / "later.json").write_text(json.dumps(changed))
    again = dfq("report", results, tmp_path / "later.json", "--json").json
    assert [Path(row["checkpoint"]).name for row in again["rows"]].count("packed") == 2

    ran = dfq("report", results, "--out", tmp_path / "r.md", "--out", tmp_path / "r.html")
    assert ran.code == 0, ran.err
    assert "w4a16" in ran.out
    assert f"| {four['perplexity']:.4f} |" in (tmp_path / "r.md").read_text()
    page = (tmp_path / "r.html").read_text()
    assert f"<td>{four['perplexity']:.4f}</td>" in page
    assert "<script" not in page
    assert "http" not in page
    assert dfq("report", results, "--out", tmp_path / "r.md").code == 2
    assert dfq("report", results, "--out", tmp_path / "r.pdf").code == 2
    empty = dfq("report", model)
    assert empty.code == 2
    assert "holds no result" in empty.err


def test_names_in_a_report_are_text(dfq: Any, pair: Any, text: Path, tmp_path: Path) -> None:
    model, _ = pair
    data = ("--dataset", text, "--seqlen", 64, "--windows", 2)
    assert dfq("eval", "ppl", "--model", model, *data, "--out", tmp_path / "x.json").code == 0
    report = read_json(tmp_path / "x.json")
    report["results"][0]["name"] = "<b>|x"
    (tmp_path / "x.json").write_text(json.dumps(report))
    assert dfq("report", tmp_path / "x.json", "--out", tmp_path / "r.html", "--out", tmp_path / "r.md").code == 0
    assert "<b>" not in (tmp_path / "r.html").read_text()
    assert "<b>\\|x" in (tmp_path / "r.md").read_text()


def test_tasks_command(dfq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data.jsonl").write_text('{"t": "import ", "c": ["os", "=="], "l": 0}\n' * 3)
    (tmp_path / "lines.yaml").write_text(
        f'task: lines\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: "{tmp_path}/data.jsonl"}}}}\n'
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{t}}"\ndoc_to_choice: "{{c}}"\n'
        "doc_to_target: l\nmetric_list: [{metric: acc}]\n"
    )
    given = ("eval", "tasks", "--model", "reference", "--task", "lines", "--task-path", tmp_path)
    out = tmp_path / "tasks.json"
    ran = dfq(*given, "--out", out)
    assert ran.code == 0, ran.err
    assert "lines acc" in ran.out
    assert dfq("report", out, "--json").json["rows"][0]["lines acc"] == 1.0
    assert dfq(*given, "--plan", "--json").json["command"] == "eval tasks"
