from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Same = Callable[[Path, Path], None]
MIXTURE = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
WAYS = {
    "outputs": ("--steps", "8"),
    "rows": ("--objective", "rows", "--rounds", "6"),
    "hadamard": ("--method", "hadamard", "--no-align"),
    "orthogonal": ("--method", "orthogonal"),
}


def rotate(model: Path, text: Path, out: Path, *more: object) -> list[object]:
    return ["rotate", "--model", model, "--dataset", text, "--seqlen", 48, "--out", out, *more]


def test_two_ranks_make_the_checkpoint_of_one(
    small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, run: Run, same: Same
) -> None:
    model = small_llama()
    run(1, *rotate(model, text_file, tmp_path / "one", *WAYS["outputs"]))
    ended = run(2, *rotate(model, text_file, tmp_path / "two", *WAYS["outputs"], "--json"))
    same(tmp_path / "one", tmp_path / "two")
    assert len(json.loads(ended[0].out)["ranks"]) == 2


@pytest.mark.slow  # three runs of up to five processes each
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("experts", [False, True])
def test_any_number_of_ranks(
    small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, run: Run, same: Same, way: str, experts: bool
) -> None:
    model = small_llama(**(MIXTURE if experts else {}))
    run(1, *rotate(model, text_file, tmp_path / "one", *WAYS[way]))
    for size in (2, 3, 5):
        run(size, *rotate(model, text_file, tmp_path / f"of{size}", *WAYS[way]))
        same(tmp_path / "one", tmp_path / f"of{size}")


SHORT_WINDOWS = """
from functools import partial
import dfrot.stages.rotate.windows as windows
windows.LEARN_HELD_OUT = 2
windows.TuneSettings = partial(windows.TuneSettings, batch=3, seqlen=48)
"""


@pytest.mark.slow  # three runs
def test_ranks_learn_r1_together(
    small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, run: Run, same: Same
) -> None:
    model = small_llama()
    for size in (1, 2, 3):
        arguments = rotate(model, text_file, tmp_path / f"of{size}", *WAYS["outputs"], "--learn", 2)
        run(size, *arguments, code=SHORT_WINDOWS)
    for size in (2, 3):
        same(tmp_path / "of1", tmp_path / f"of{size}")


@pytest.mark.slow  # three runs
@pytest.mark.parametrize(("victim", "unit"), [(0, "rotation"), (1, "transforms"), (1, "model.layers.0")])
def test_a_killed_run_goes_on_with_another_number(
    small_llama: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
    run: Run,
    start: Any,
    same: Same,
    victim: int,
    unit: str,
) -> None:
    model = small_llama()
    run(1, *rotate(model, text_file, tmp_path / "one", *WAYS["outputs"]))
    out, journal = tmp_path / "killed", tmp_path / ".killed.partial" / "journal.jsonl"
    running = start(2, *rotate(model, text_file, out, *WAYS["outputs"]))
    running.kill(victim, lambda: journal.exists() and f'"{unit}"' in journal.read_text())
    ended = running.wait()
    assert ended[victim].code == -9
    assert ended[1 - victim].code == 2
    assert f"Error: rank {victim} of 2 died" in ended[1 - victim].err
    assert not out.exists()
    run(1 if victim else 3, *rotate(model, text_file, out, *WAYS["outputs"]))
    same(tmp_path / "one", out)
