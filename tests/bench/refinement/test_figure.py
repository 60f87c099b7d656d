"""Generated activations reproduce the table behind DFRot's finding, and the order of the paper's figure."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.bench.refinement.figure import figure_data, plot_figure, token_errors
from dfrot.bench.refinement.run import compare_refinement
from dfrot.bench.refinement.synthetic_rows import (
    CHANNELS,
    DELIMITER,
    ERROR_TABLE,
    START_TOKEN,
    WIDTH,
    massive_rows,
    table_rows,
)
from dfrot.errors import ResourceError
from dfrot.rotation.hadamard import randomized_hadamard
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer

# one draw of 64 rows; the largest |x| of a row moves the error, most for heavy tails and for one fixed direction
TOLERANCE = 0.016


@pytest.fixture(scope="module")
def rotations() -> dict[str, torch.Tensor | None]:
    draw = torch.Generator().manual_seed(0)
    # Three rounds of signs, shuffles and Hadamards: as good as a random orthogonal matrix for this purpose, and
    # far cheaper than the QR decomposition of a 4096 x 4096 matrix
    mixed = torch.eye(WIDTH)
    power = randomized_hadamard(WIDTH, 1).float()
    for _ in range(3):
        mixed = (mixed @ power)[:, torch.randperm(WIDTH, generator=draw)]
    return {"NR": None, "RH": randomized_hadamard(WIDTH, 0), "RO": mixed}


@pytest.mark.parametrize("kind", ERROR_TABLE)
def test_the_table_is_reproduced(kind: str, rotations: dict[str, torch.Tensor | None]) -> None:
    rows = table_rows(kind)
    norms = rows.double().norm(dim=1)
    found = [
        float((token_errors(rows, matrix, TokenQuantizer(4, symmetric)) / norms).mean())
        for symmetric in (True, False)
        for matrix in rotations.values()
    ]
    assert found == pytest.approx(ERROR_TABLE[kind], abs=TOLERANCE)


def test_massive_rows_carry_the_published_values() -> None:
    rows = massive_rows(4)
    for row, values in ((0, START_TOKEN), (1, DELIMITER)):
        found = rows[row, list(CHANNELS)]
        assert float(found[1] / found[0]) == pytest.approx(values[1] / values[0], rel=1e-5)
        assert float(rows[row].abs().max() / rows[row].abs().median()) > 1000
    assert torch.equal(massive_rows(4, seed=1)[0], rows[0])  # the start token is the same in every text
    assert not torch.equal(massive_rows(4, seed=1)[1], rows[1])


def check_order(data: dict[str, Any]) -> None:
    for mode in ("symmetric", "asymmetric"):
        massive, common = data["means"][mode]["massive"], data["means"][mode]["common"]
        assert massive["orthogonal"] > 1.25 * massive["none"]
        assert massive["orthogonal"] > 1.5 * massive["hadamard"]
        assert massive["dfrot"] < 0.8 * massive["hadamard"]
        assert massive["dfrot"] < massive["none"]
        rotated = [common[name] for name in ("orthogonal", "hadamard", "dfrot")]
        assert max(rotated) < 1.03 * min(rotated)
        assert max(rotated) < common["none"]
    asymmetric = data["means"]["asymmetric"]["massive"]
    assert asymmetric["hadamard"] < asymmetric["none"]


def test_figure_has_the_order_of_the_paper(tmp_path: Path) -> None:
    data = figure_data(256, 900, 48, rounds=12)
    check_order(data)
    json.dumps(data)
    pytest.importorskip("matplotlib")
    plot_figure(data, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_figure_at_full_width() -> None:
    check_order(figure_data())


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ResourceError, match=r"pip install 'dfq\[plot\]'"):
        plot_figure({}, tmp_path / "figure.png")


def test_bench_reports_both_methods() -> None:
    found = compare_refinement(64, 2000, 12)
    assert found["straightforward"]["curve"][0][2] == pytest.approx(found["refine"]["curve"][0][2], rel=1e-5)
    assert len(found["straightforward"]["curve"]) == 13
    seconds = [point[1] for point in found["straightforward"]["curve"]]
    assert seconds == sorted(seconds)
    values = [point[2] for point in found["refine"]["curve"]]
    assert values == sorted(values, reverse=True)
    assert {level["round"] for level in found["levels"]} >= {1, 2, 5, 10}
    assert found["refine"]["peak_bytes"] >= 0
    json.dumps(found)
