from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow  # three runs of up to three processes, each with recipes
def test_any_number_of_ranks(
    small_llama: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
    run: Callable[..., Any],
    same: Callable[[Path, Path], None],
) -> None:
    command = ("outliers", small_llama(), "--dataset", text_file, "--seqlen", 64, "--windows", 2, "--rounds", 6)
    run(1, *command, "--out", tmp_path / "one")
    for size in (2, 3):
        run(size, *command, "--out", tmp_path / f"of{size}")
        same(tmp_path / "one", tmp_path / f"of{size}")
