from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Same = Callable[[Path, Path], None]
Build = Callable[..., Path]
MIXTURE = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
NARROW_PANELS = "import dfrot.quant.rounding.row_panels as panels; panels.WIDTH = 128\n"
"""As if the model were wide: factors of several panels, an error that is collected through the weights."""
WAYS = {
    "propagated": (),
    "stored": ("--no-propagate",),
    "rounded": ("--algorithm", "rtn"),
    "tables": ("--head", "4+16", "--embed", "8", "--compensate", "0"),
    "budget": ("--budget", "5"),
}


@pytest.fixture
def calibrated(small_llama: Build, text_file: Path, tmp_path: Path, run: Run) -> Callable[..., tuple[Path, Path]]:
    """calibrated(**config) -> a model and its calibration of 20 samples: seven chunks."""

    def make(**config: Any) -> tuple[Path, Path]:
        model, out = small_llama(**config), tmp_path / "calibration"
        run(1, "calibrate", "--model", model, "--dataset", text_file, "--samples", 20, "--seqlen", 32, "--out", out)
        return model, out

    return make


def quantize(model: Path, calibration: Path, out: Path, *more: object) -> list[object]:
    return ["quantize", "--model", model, "--calibration", calibration, "--out", out, *more]


def test_two_ranks_make_the_checkpoint_of_one(
    calibrated: Callable[..., tuple[Path, Path]], tmp_path: Path, run: Run, same: Same
) -> None:
    model, calibration = calibrated(intermediate_size=288)
    run(1, *quantize(model, calibration, tmp_path / "one"), code=NARROW_PANELS)
    ended = run(2, *quantize(model, calibration, tmp_path / "two", "--json"), code=NARROW_PANELS)
    same(tmp_path / "one", tmp_path / "two")
    assert len(json.loads(ended[0].out)["ranks"]) == 2


@pytest.mark.slow  # up to three runs of up to nine processes each
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("experts", [False, True])
def test_any_number_of_ranks(
    calibrated: Callable[..., tuple[Path, Path]], tmp_path: Path, run: Run, same: Same, way: str, experts: bool
) -> None:
    if experts and way == "budget":
        pytest.skip("a budget does not take experts")
    model, calibration = calibrated(**(MIXTURE if experts else {}))
    run(1, *quantize(model, calibration, tmp_path / "one", *WAYS[way]))
    for size in (3, 9):
        run(size, *quantize(model, calibration, tmp_path / f"of{size}", *WAYS[way]))
        same(tmp_path / "one", tmp_path / f"of{size}")


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_rank_is_named_and_the_run_goes_on_with_another_number(
    calibrated: Callable[..., tuple[Path, Path]], tmp_path: Path, run: Run, start: Any, same: Same, victim: int
) -> None:
    model, calibration = calibrated()
    run(1, *quantize(model, calibration, tmp_path / "one"))
    out = tmp_path / "killed"
    journal = tmp_path / ".killed.partial" / "journal.jsonl"
    running = start(2, *quantize(model, calibration, out))
    running.kill(victim, lambda: journal.exists() and "layer-00000" in journal.read_text())
    ended = running.wait()
    assert ended[victim].code == -9
    survivor = ended[1 - victim]
    assert survivor.code == 2
    (error,) = [
        line for line in survivor.err.splitlines() if line.startswith("Error")
    ]  # torch may write a trace of its own
    assert error.startswith(f"Error: rank {victim} of 2 died"), survivor
    assert not out.exists()
    assert journal.exists(), "what was done stays"
    run(1 if victim else 3, *quantize(model, calibration, out))
    same(tmp_path / "one", out)
