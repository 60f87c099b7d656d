"""dfq bench kernels: the gate refuses a wrong op, results have their schema, the plot is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot.bench.kernels import roofline
from dfrot.bench.kernels import run as kernels
from dfrot.bench.kernels.cases import common, rows
from dfrot.bench.kernels.cases.table import BUILDERS
from dfrot.bench.kernels.figure import plot_roofline
from dfrot.errors import InputError, UnsupportedError

SMALL: dict[str, Any] = {"shapes": [(32, 128)], "rows": [1, 3], "repeats": 2}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings and probes of kilobytes: these tests look at the logic, not at speeds."""
    torch.set_num_threads(1)
    monkeypatch.setattr(roofline, "MIN_RING_BYTES", 1 << 18)
    monkeypatch.setattr(roofline, "CACHES", 0)
    monkeypatch.setattr(roofline.measure, "__defaults__", (2, 64))


def check_schema(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert {"results", "roofline", "machine", "repeats", "seed"} <= result.keys()
    assert all(value > 0 for value in result["roofline"].values())
    for one in result["results"]:
        assert one["passed"]
        assert 0 <= one["error"] <= one["limit"]
        assert one["seconds"]["best"] <= one["seconds"]["median"]
        assert one["roofline_percent"] > 0
        for peer in one["peers"].values():
            assert peer["ratio"] == pytest.approx(peer["seconds"]["median"] / one["seconds"]["median"])


def test_results_and_figure(tmp_path: Path) -> None:
    result = kernels.bench_kernels(["w4a16_mm", "w4a8_mm", "hadamard"], **SMALL)
    check_schema(result)
    assert [(one["op"], one["shape"]["rows"]) for one in result["results"]] == [
        (op, rows) for op in ("w4a16_mm", "w4a8_mm", "hadamard") for rows in (1, 3)
    ]
    assert {"torch bf16", "torch int8"} <= result["results"][0]["peers"].keys()
    pytest.importorskip("matplotlib")
    plot_roofline(result, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"


def test_a_wrong_op_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = common.operator

    def broken(name: str) -> Any:
        return lambda *arguments: genuine(name)(*arguments) * 1.01

    monkeypatch.setattr(common, "operator", broken)
    for op in ("w4a16_mm", "w4a8_mm"):
        (one,) = kernels.bench_kernels([op], **{**SMALL, "rows": [2]})["results"]
        assert one["passed"] is False
        assert "seconds" not in one
        assert "peers" not in one


def test_the_command_reports_a_wrong_op(monkeypatch: pytest.MonkeyPatch) -> None:
    from dfrot_cli.main import main

    def huge(x: torch.Tensor, packed: torch.Tensor, *rest: object) -> torch.Tensor:
        return torch.full((x.shape[0], packed.shape[0]), 1e9)

    monkeypatch.setattr(common, "operator", lambda name: huge)
    options = ["--ops", "w4a16_mm", "--shapes", "32x64", "--rows", "1", "--repeats", "1", "--json"]
    ran = CliRunner().invoke(main, ["bench", "kernels", *options])
    assert ran.exit_code == 1
    assert "off its reference" in ran.stderr
    assert json.loads(ran.stdout)["results"][0]["passed"] is False


def test_the_command_prints_tables(tmp_path: Path) -> None:
    from dfrot_cli.main import main

    options = ["--ops", "w4a16_mm,quantize_per_token", "--shapes", "32x64", "--rows", "1,2", "--repeats", "1"]
    ran = CliRunner().invoke(main, ["bench", "kernels", *options, "--figure", str(tmp_path / "roof.png")])
    assert ran.exit_code == 0, ran.output
    assert "w4a16_mm" in ran.stdout
    assert "x torch bf16" in ran.stdout
    assert (tmp_path / "roof.png").is_file()
    again = CliRunner().invoke(main, ["bench", "kernels", *options, "--figure", str(tmp_path / "roof.png")])
    assert again.exit_code == 2


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"ops": ["w9a9"]}, InputError, "does not know"),
        ({"shapes": [(30, 64)]}, InputError, "multiples of 16"),
        ({"shapes": [(32, 64)], "group": 48}, InputError, "does not divide"),
    ],
)
def test_bad_requests(given: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        kernels.bench_kernels(given.pop("ops", ["w4a16_mm"]), **{**SMALL, **given})


def test_an_op_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, "from_the_future", rows.hadamard)
    assert "from_the_future" not in kernels.available_ops()
    with pytest.raises(UnsupportedError, match="no such operator"):
        kernels.selected_ops(["from_the_future"])
