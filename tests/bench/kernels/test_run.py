"""dfq bench kernels: the gate refuses a wrong op, results have their schema, the plot is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot.bench.clock import Timing, race
from dfrot.bench.kernels import roofline
from dfrot.bench.kernels import run as kernels
from dfrot.bench.kernels.case import Case, ProblemShape, error
from dfrot.bench.kernels.cases import fused as cases_fused
from dfrot.bench.kernels.cases import products as cases
from dfrot.bench.kernels.figure import plot
from dfrot.errors import InputError, UnsupportedError

SMALL: dict[str, Any] = {"shapes": [(32, 128)], "rows": [1, 3], "repeats": 2}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings and probes of kilobytes: these tests look at the logic, not at speeds."""
    torch.set_num_threads(1)
    monkeypatch.setattr(roofline, "LEAST_BYTES", 1 << 18)
    monkeypatch.setattr(roofline, "BEYOND", 0)
    monkeypatch.setattr(roofline.measure, "__defaults__", (2, 64))


@pytest.mark.parametrize("name", cases.BUILDERS)
@pytest.mark.parametrize("rows", [1, 17])
def test_every_op_passes_its_gate(name: str, rows: int) -> None:
    if not hasattr(torch.ops.dfq, name):
        pytest.skip("not in this installation")
    shape = ProblemShape(48, 128, rows, 32, heads=4, kv_heads=2, head_dim=32, context=40)
    case = cases.BUILDERS[name](shape, torch.Generator().manual_seed(0), 0)
    assert case.gate() <= case.limit
    assert case.nbytes > 0
    assert len(case.ours) >= 2


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
    plot(result, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"


def test_a_wrong_op_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = cases._op

    def broken(name: str) -> Any:
        return lambda *arguments: genuine(name)(*arguments) * 1.01

    monkeypatch.setattr(cases, "_op", broken)
    for op in ("w4a16_mm", "w4a8_mm"):
        (one,) = kernels.bench_kernels([op], **{**SMALL, "rows": [2]})["results"]
        assert one["passed"] is False
        assert "seconds" not in one
        assert "peers" not in one


def test_the_command_reports_a_wrong_op(monkeypatch: pytest.MonkeyPatch) -> None:
    from dfrot_cli.main import main

    monkeypatch.setattr(cases, "_op", lambda name: lambda x, *rest: torch.full((x.shape[0], rest[0].shape[0]), 1e9))
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
    monkeypatch.setitem(cases.BUILDERS, "from_the_future", cases.hadamard)
    assert "from_the_future" not in kernels.available()
    with pytest.raises(UnsupportedError, match="no such operator"):
        kernels.chosen(["from_the_future"])


def test_moved_codes_are_counted() -> None:
    codes, scale, zero = torch.zeros(2, 8, dtype=torch.int8), torch.ones(2), torch.zeros(2, dtype=torch.int32)
    other = codes.clone()
    other[0, 0] = 1
    assert cases_fused.moved((codes, scale, zero), (other, scale, zero)) == 1 / 16
    assert math.isinf(cases_fused.moved((codes, scale, zero), (2 * other, scale, zero)))
    assert math.isinf(cases_fused.moved((codes, scale, zero), (codes, 1.01 * scale, zero)))


def test_error_sees_everything() -> None:
    ones = torch.ones(3)
    assert error(ones, ones) == 0.0
    assert error((ones, 2 * ones), (ones, ones)) == 1.0
    assert math.isinf(error(torch.tensor([1.0, math.nan]), torch.ones(2)))
    assert math.isinf(error(torch.ones(2), ones))


def test_contenders_take_turns() -> None:
    order: list[str] = []
    times = race({"a": [lambda: order.append("a")], "b": [lambda: order.append("b")]}, 3)
    runs = "".join(order).replace("aa", "a")
    assert times.keys() == {"a", "b"}
    assert all(time.samples == 3 for time in times.values())
    while "aa" in runs or "bb" in runs:
        runs = runs.replace("aa", "a").replace("bb", "b")
    assert runs == "ab" * (1 + 3)  # warming up, then three rounds


def test_timing_statistics() -> None:
    timing = Timing.of([1.0, 3.0, 2.0])
    assert (timing.median, timing.best, timing.samples) == (2.0, 1.0, 3)
    assert timing.spread == pytest.approx(0.5)
    assert Timing.of([2.0]).spread == 0.0


def test_cache_size_is_read_from_the_system(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "8M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert roofline.cache_bytes(tmp_path) == 8 << 20
    assert roofline.cache_bytes(tmp_path / "missing") == 32 << 20


def test_case_rings_cover_the_memory() -> None:
    case: Case = cases.w4a16_mm(ProblemShape(64, 128, 1), torch.Generator(), 100_000)
    assert len(case.ours) * 64 * 128 / 2 >= 90_000
