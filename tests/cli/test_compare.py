"""dfq compare: the table, its arithmetic, and resuming cell by cell."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dfrot.errors import ExistsError, InputError, UnsupportedError
from dfrot.quant.scheme import QuantScheme
from dfrot.stages.compare import measure as measure_module
from dfrot.stages.compare import store as store_module
from dfrot.stages.compare.cells import comparison_cells, comparison_groups
from dfrot.stages.compare.make import CheckpointMaker
from dfrot.stages.compare.markdown import markdown
from dfrot.stages.compare.rows import ROTATIONS, ROWS, STANDARD
from dfrot.stages.compare.settings import CompareSettings
from dfrot.stages.compare.store import CellStore
from dfrot.stages.compare.table import summarise


def cell(*losses: float, speed: float = 100.0) -> dict[str, Any]:
    return {
        "window_nll": list(losses),
        "perplexity": math.exp(sum(losses) / len(losses)),
        "bytes_on_disk": 1000,
        "tokens_per_second": speed,
        "decode_tokens_per_second": None,
        "dataset": {"name": "d"},
        "protocol": {"id": "p"},
    }


def cells(plain: float = 0.5, dfrot: float = 0.01) -> dict[str, Any]:
    """Two seeds; every method is the baseline plus a constant, so that paired intervals have no width."""
    base = (3.0, 3.5, 2.5)
    shift = {
        "rtn-orthogonal": 0.05,
        "rtn-hadamard": 0.04,
        "rtn-dfrot": 0.03,
        "gptq-hadamard": 0.02,
        "gptq-dfrot": dfrot,
    }
    found = {"bf16": cell(*base), "w4a4kv4-rtn-none": cell(*(loss + plain for loss in base))}
    for name, more in shift.items():
        for seed, jitter in enumerate((-0.001, 0.001)):
            found[f"w4a4kv4-{name}-{seed}"] = cell(*(loss + more + jitter for loss in base))
    return found


def report(**changes: float) -> dict[str, Any]:
    settings = CompareSettings(schemes=("w4a4kv4",), seeds=2)
    return summarise(cells(**changes), comparison_cells(settings), {"w4a4kv4": QuantScheme.parse("w4a4kv4")}, {})


def test_rows_are_means_over_seeds_with_paired_intervals() -> None:
    table = report()["tables"]["w4a4kv4"]
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows)[:2] == ["bf16", "RTN"]
    assert len(rows) == 7
    row = rows["RTN + Hadamard"]
    assert row["seeds"] == 2
    assert row["ratio_to_bf16"] == pytest.approx(math.exp(0.04))
    assert row["ratio_ci"] == pytest.approx([math.exp(0.04)] * 2)  # the windows differ, their differences do not
    assert row["perplexity"] == pytest.approx(math.exp(3.0) * math.exp(0.04), rel=1e-5)
    assert row["spread"] == pytest.approx(row["perplexity"] * 0.002 / math.sqrt(2), rel=1e-3)
    assert rows["RTN"]["spread"] is None
    assert rows["bf16"]["ratio_ci"] is None


def test_differences_name_both_sides() -> None:
    pairs = {(one["method"], one["against"]): one for one in report()["tables"]["w4a4kv4"]["differences"]}
    one = pairs[("GPTQ + DFRot", "GPTQ + Hadamard")]
    assert one["ratio"] == pytest.approx(math.exp(-0.01))
    assert one["ratio_by_seed"] == pytest.approx([math.exp(-0.01)] * 2)
    assert one["seeds_agree"]


def test_claims_hold_or_are_said_not_to() -> None:
    good = {claim["claim"]: claim["holds"] for claim in report()["tables"]["w4a4kv4"]["claims"]}
    assert len(good) == 7
    assert all(good.values())
    bad = {claim["claim"]: claim["holds"] for claim in report(plain=0.1, dfrot=0.06)["tables"]["w4a4kv4"]["claims"]}
    assert not bad["no rotation costs at least 1.25 x bf16"]
    assert not bad["GPTQ + DFRot below RTN + DFRot"]
    assert not bad["GPTQ + DFRot at most 1.03 x bf16"]
    assert bad["RTN + Hadamard clearly below RTN"]


def test_markdown_holds_every_row() -> None:
    text = markdown(report())
    assert all(row in text for row in ("| bf16 |", "| RTN |", "| GPTQ + DFRot |", "GPTQ + DFRot / GPTQ + Hadamard"))


def test_rotations_are_shared_where_they_do_not_depend_on_the_scheme() -> None:
    found = list(comparison_groups(CompareSettings(seeds=2)))
    names = [group.name for group in found]
    assert len(set(names)) == len(names)
    assert sum(len(group.cells) for group in found) == 2 * (1 + 5 * 2)
    kinds = [group.settings.method if group.settings else "none" for group in found]
    assert {kind: kinds.count(kind) for kind in kinds} == {"none": 1, "orthogonal": 2, "hadamard": 2, "dfrot": 4}
    refined = [group for group in found if group.settings and group.settings.method == "dfrot"]
    assert {group.settings.a_bits for group in refined if group.settings} == {3, 4}


def test_rows_are_chosen_and_keep_the_order_of_the_table() -> None:
    settings = CompareSettings(rows=("gptq-none", "rtn-none", "gptq-hadamard-groups"), seeds=2, schemes=("w4a4kv4",))
    cells = comparison_cells(settings)
    assert [cell.name for cell in cells] == [
        "w4a4kv4-rtn-none",  # nothing random: once
        "w4a4kv4-gptq-none-0",  # the calibration is drawn by the seed
        "w4a4kv4-gptq-none-1",
        "w4a4kv4-gptq-hadamard-groups-0",
        "w4a4kv4-gptq-hadamard-groups-1",
    ]
    assert cells[-1].quantize_settings(settings).scheme.name == "w4a4kv4-g32"
    names = [group.name for group in comparison_groups(settings)]
    assert names == ["none-w4a4kv4", "hadamard-0-w4a4kv4", "hadamard-1-w4a4kv4"]


def test_every_row_makes_settings_and_names_known_rows() -> None:
    settings = CompareSettings(rows=tuple(ROWS), tune=1, seeds=1)
    for cell in comparison_cells(settings):
        quantize_settings = cell.quantize_settings(settings)
        assert quantize_settings.needs_calibration() == (cell.calibrate_settings(settings) is not None)
        assert set(cell.row.against) <= set(ROWS)
    assert set(STANDARD) <= set(ROWS)
    assert {row.rotation for row in ROWS.values()} <= set(ROTATIONS)


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="`rows` 'rtn-hadmard': choose one of rtn-none"):
        CompareSettings(rows=("rtn-hadmard",))
    with pytest.raises(InputError, match="`rows` tuned-dfrot: give the steps of tuning with `tune`"):
        CompareSettings(rows=("tuned-dfrot",))
    with pytest.raises(InputError, match="none of `rows` is tuned"):
        CompareSettings(rows=("rtn-none",), tune=3)
    with pytest.raises(InputError):
        CompareSettings(seeds=0)
    with pytest.raises(UnsupportedError, match="weights and activations"):
        CompareSettings(schemes=("w4a16",))


@pytest.fixture
def options(make: Any, text: Path, tmp_path: Path) -> tuple[object, ...]:
    sizes = (
        "--seqlen",
        32,
        "--windows",
        3,
        "--samples",
        2,
        "--calibration-seqlen",
        32,
        "--decode",
        2,
        "--refine-seqlen",
        32,
    )
    return ("compare", "--model", make(), "--dataset", text, "--seeds", 1, "--scheme", "w4a4kv4", *sizes)


def test_killed_and_resumed(
    dfq: Any, options: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the fourth cell, the rest is made on resuming, and the numbers are those of one run."""
    measured: list[str] = []
    measure = measure_module.measure_model

    def counting(model: Any, checkpoint: Any, *rest: Any) -> Any:
        if len(measured) == 4:
            measured.append("interrupt")
            raise KeyboardInterrupt
        measured.append(checkpoint.path.name)
        return measure(model, checkpoint, *rest)

    monkeypatch.setattr(measure_module, "measure_model", counting)
    out = tmp_path / "out"
    assert dfq(*options, "--out", out).code == 130
    assert not out.exists()
    resumed = dfq(*options, "--out", out, "--json")
    assert resumed.code == 0, resumed.err
    # seven cells, each measured once, the interruption, and the baseline again: others are compared with its logits
    assert len(measured) == 7 + 1 + 1
    assert sorted(path.name for path in out.iterdir()) == ["compare.json", "compare.md", "stage.json"]
    straight = dfq(*options, "--store", tmp_path / "store", "--out", tmp_path / "straight")
    assert straight.code == 0
    assert all(word in straight.out for word in ("bf16", "GPTQ + DFRot", "claim", "straight/compare.json"))
    from dfrot.files import read_json

    again = read_json(tmp_path / "straight" / "compare.json")["cells"]
    assert {name: one["window_nll"] for name, one in resumed.json["cells"].items()} == {
        name: one["window_nll"] for name, one in again.items()
    }


@pytest.mark.slow  # trains for 9 s; tests/stages/tune holds what tuning does
def test_a_tuned_row_stands_beside_its_start(dfq: Any, options: tuple[object, ...], tmp_path: Path) -> None:
    report = dfq(*options, "--tune", 1, "--out", tmp_path / "out", "--json").json
    table = report["tables"]["w4a4kv4"]
    assert [row["method"] for row in table["rows"]][-2:] == ["GPTQ + DFRot", "GPTQ + DFRot, tuned"]
    assert any(one["method"] == "GPTQ + DFRot, tuned" for one in table["differences"])
    assert any(one["claim"] == "GPTQ + DFRot, tuned at most 1.03 x bf16" for one in table["claims"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.json", "compare.md", "stage.json"]


def test_chosen_rows_alone_are_made(dfq: Any, options: tuple[object, ...], tmp_path: Path) -> None:
    rows = "gptq-hadamard-clip,gptq-hadamard-sinks,gptq-none"
    result = dfq(*options, "--rows", rows, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    table = result.json["tables"]["w4a4kv4"]
    assert [row["method"] for row in table["rows"]] == [
        "bf16",
        "GPTQ",
        "GPTQ + Hadamard, activations clipped",
        "GPTQ + Hadamard, 4 sink tokens",
    ]
    assert not table["differences"]
    assert not table["claims"]
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| GPTQ |" in text
    assert "difference" not in text


def test_what_does_not_fit_is_refused_before_work(
    dfq: Any, make: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve bits of a head are no whole bytes: quantize would say so, behind the first rotation."""
    monkeypatch.setattr(CheckpointMaker, "make", lambda *_: pytest.fail("work began"))
    model = make(num_attention_heads=8)
    refused = dfq(
        "compare", "--model", model, "--dataset", text, "--scheme", "w4a4kv3", "--seqlen", 32, "--out", tmp_path / "out"
    )
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "head_dim 4 at 3 bits does not fill whole bytes" in refused.err


def test_rows_are_listed_without_a_model(dfq: Any) -> None:
    result = dfq("compare", "--list-rows")
    assert result.code == 0
    assert all(name in result.out for name in ROWS)
    refused = dfq("compare", "--model", "reference", "--rows", "gptq,rtn-none", "--out", "x")
    assert refused.code == 2
    assert "--rows 'gptq': choose one of rtn-none" in refused.err


def test_a_second_run_measures_only_what_is_new(
    dfq: Any, options: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further row and a further seed are added to what the store holds; the rest keeps its bytes."""
    made: list[str] = []
    make = CheckpointMaker.make
    monkeypatch.setattr(CheckpointMaker, "make", lambda self, cell: made.append(cell.name) or make(self, cell))
    first = dfq(*options, "--rows", "rtn-none,rtn-hadamard", "--out", tmp_path / "first", "--json").json
    assert made == ["w4a4kv4-rtn-none", "w4a4kv4-rtn-hadamard-0"]
    more = ("--rows", "rtn-none,rtn-hadamard,gptq-hadamard", "--seeds", 2)
    planned = dfq(*options, *more, "--out", tmp_path / "second", "--plan", "--json").json["inputs"]
    assert (planned["cells"], planned["stored"]) == ("6", "3")
    second = dfq(*options, *more, "--out", tmp_path / "second", "--json").json
    assert made[2:] == ["w4a4kv4-gptq-hadamard-0", "w4a4kv4-rtn-hadamard-1", "w4a4kv4-gptq-hadamard-1"]
    assert {name: second["cells"][name] for name in first["cells"]} == first["cells"]
    assert not second["other_code"]
    assert not list((tmp_path / ".compare" / "work").iterdir())
    # another state of the code is named, and measured again only when told so
    monkeypatch.setattr(store_module, "code_digest", lambda: "other")
    third = dfq(*options, *more, "--out", tmp_path / "third")
    assert len(made) == 5
    assert "6 cells were measured by another state of dfq's code" in third.err
    again = dfq(*options, *more, "--no-resume", "--out", tmp_path / "fourth", "--json").json
    assert len(made) == 10
    assert not again["other_code"]


def test_rows_cost_time_and_memory_and_diverge(dfq: Any, options: tuple[object, ...], tmp_path: Path) -> None:
    also = tmp_path / "other.txt"
    also.write_text("".join(f"{n} times {n} is not {n * n + 1}; it is less.\n" for n in range(300)))
    rows = ("--rows", "rtn-none,gptq-hadamard", "--seeds", 2, "--also", also)
    report = dfq(*options, *rows, "--out", tmp_path / "out", "--json").json
    base, rtn, gptq = report["tables"]["w4a4kv4"]["rows"]
    assert (base["kl"], base["top1"], base["make_seconds"]) == (0, 1, 0)
    assert rtn["kl"] > 0
    assert rtn["kl_ci"][0] <= rtn["kl"] <= rtn["kl_ci"][1]
    kls = [report["cells"][f"w4a4kv4-gptq-hadamard-{seed}"]["kl"] for seed in (0, 1)]
    assert gptq["kl"] == pytest.approx(sum(kls) / 2)
    assert gptq["make_seconds"] > rtn["make_seconds"] > 0
    assert rtn["peak_memory"] > 50e6
    text = str(also)
    assert base["also"][text]["ratio_to_bf16"] == 1
    assert base["also"][text]["perplexity"] != base["perplexity"]
    assert gptq["also"][text]["spread"] > 0
    assert [entry["dataset"]["name"] for entry in report["also"]] == [text]
    assert report["calibration"]["evaluated"]  # a single file is both splits
    page = (tmp_path / "out" / "compare.md").read_text()
    assert f"Further text {text}, which nothing was calibrated on" in page
    assert "Its only text is also that of calibration" in page
    # the calibrated text itself is no further text
    refused = dfq(*options, "--also", options[4], "--out", tmp_path / "no")
    assert refused.code == 2
    assert "is the text of the calibration" in refused.err


def test_a_store_is_for_one_process_and_checks_what_it_reads(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "store")
    second = CellStore(tmp_path / "store").locked()
    with store.locked(), pytest.raises(ExistsError, match="another dfq compare is working here"), second:
        pass
    with store.locked():
        store.put({"a": 1}, {"value": 2})
    assert store.get({"a": 1}) == {"value": 2, "same_code": True}
    assert not store.has({"a": 2})
    (file,) = (tmp_path / "store").glob("*.json")
    file.write_text(file.read_text().replace('"a": 1', '"a": 3'))
    with pytest.raises(InputError, match="is not what dfq compare wrote"):
        store.get({"a": 1})
