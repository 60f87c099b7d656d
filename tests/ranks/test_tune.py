from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Same = Callable[[Path, Path], None]
STEPS = ("--steps", 6, "--batch", 4, "--seqlen", 32, "--held-out", 3, "--evaluations", 3)


@pytest.fixture
def tune(small_llama: Callable[..., Path], text_file: Path, tmp_path: Path, run: Run) -> Callable[..., list[object]]:
    """tune(out, ...) -> the command that tunes a packed model."""
    model, packed = small_llama(), tmp_path / "packed"
    run(1, "quantize", "--model", model, "--algorithm", "rtn", "--a-clip", 1, "--head", 8, "--out", packed)

    def command(out: Path, *more: object) -> list[object]:
        inputs = ("--model", packed, "--teacher", model, "--dataset", text_file)
        return ["tune", *inputs, *STEPS, "--out", out, *more]

    return command


@pytest.mark.slow  # five runs of up to five processes
def test_any_number_of_ranks(tune: Callable[..., list[object]], tmp_path: Path, run: Run, same: Same) -> None:
    run(1, *tune(tmp_path / "one"))
    for size in (2, 3, 5):
        run(size, *tune(tmp_path / f"of{size}"))
        same(tmp_path / "one", tmp_path / f"of{size}")


@pytest.mark.slow  # four runs
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_run_goes_on_with_another_number(
    tune: Callable[..., list[object]], tmp_path: Path, run: Run, start: Any, same: Same, victim: int
) -> None:
    more = ("--steps", 60, "--evaluations", 20)
    run(1, *tune(tmp_path / "one", *more))
    out, state = tmp_path / "killed", tmp_path / ".killed.partial" / "state.safetensors"
    running = start(2, *tune(out, *more))
    running.kill(victim, state.exists)
    ended = running.wait()
    assert ended[victim].code == -9
    assert ended[1 - victim].code == 2
    assert f"Error: rank {victim} of 2 died" in ended[1 - victim].err
    run(1 if victim else 3, *tune(out, *more))
    same(tmp_path / "one", out)
