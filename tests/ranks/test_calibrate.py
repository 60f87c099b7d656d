from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Same = Callable[[Path, Path], None]


def calibrate(model: Path, text: Path, out: Path, *more: object) -> list[object]:
    """Seven chunks of three samples each, the last one of two."""
    shape = ("--samples", 20, "--seqlen", 32)
    return ["calibrate", "--model", model, "--dataset", text, *shape, "--out", out, *more]


def test_two_ranks_make_the_calibration_of_one(
    small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, run: Run, same: Same
) -> None:
    model = small_llama()
    run(1, *calibrate(model, text_file, tmp_path / "one"))
    ended = run(2, *calibrate(model, text_file, tmp_path / "two", "--json"))
    same(tmp_path / "one", tmp_path / "two")
    ranks = json.loads(ended[0].out)["ranks"]
    assert [entry["rank"] for entry in ranks] == [0, 1]
    assert all(entry["peak_bytes"] > 1 << 26 for entry in ranks)


@pytest.mark.slow  # five runs of up to nine processes
@pytest.mark.parametrize("experts", [False, True])
def test_any_number_of_ranks(
    small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, run: Run, same: Same, experts: bool
) -> None:
    mixture = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    model = small_llama(**(mixture if experts else {}))
    run(1, *calibrate(model, text_file, tmp_path / "one"))
    for size in (2, 3, 4, 9):
        run(size, *calibrate(model, text_file, tmp_path / f"of{size}"))
        same(tmp_path / "one", tmp_path / f"of{size}")
