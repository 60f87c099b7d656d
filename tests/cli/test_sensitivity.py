"""dfq eval sensitivity on a tiny checkpoint: table, JSON and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.files import read_json


def test_table_json_and_picture(dfq: Any, make: Any, text: Path, tmp_path: Path) -> None:
    model, rotated = make(), tmp_path / "rotated"
    data = ("--dataset", text, "--seqlen", 32, "--windows", 2)
    assert dfq("rotate", "--model", model, "--method", "hadamard", "--dataset", text, "--out", rotated).code == 0
    files = ("--figure", tmp_path / "costs.svg", "--out", tmp_path / "costs.json")
    ran = dfq("eval", "sensitivity", "--model", model, "--rotated", rotated, *data, *files)
    assert ran.code == 0, ran.err
    assert all(word in ran.out for word in ("nothing", "input of gate/up", "keys", "KL, rotated", "sum over layers"))
    report = read_json(tmp_path / "costs.json")
    assert [result["name"] for result in report["results"]] == [str(model), str(rotated)]
    assert (tmp_path / "costs.svg").read_text().startswith("<svg")
    refused = dfq("eval", "sensitivity", "--model", model, *data, *files)
    assert refused.code == 2
    assert "already exists" in refused.err


def test_a_bad_scheme_is_one_line(dfq: Any, make: Any, text: Path) -> None:
    ran = dfq("eval", "sensitivity", "--model", make(), "--dataset", text, "--scheme", "w16a16")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "--scheme w16a16: leaves everything in 16 bits" in ran.err
