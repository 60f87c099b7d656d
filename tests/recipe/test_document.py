"""The YAML files of recipes: what is refused before any key is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfrot.errors import InputError
from dfrot.recipe import document
from dfrot.recipe.recipe import load


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: 1\na: 2\n", "given twice"),
        ("1: 2\n", "is not text"),
        ("- a\n", "holds no keys"),
        ("a: !!python/object/apply:os.system [x]\n", "not readable"),
        ("a: {", "not readable"),
        ("x" * (document.MAX_BYTES + 1), "larger than"),
    ],
)
def test_hostile_files_are_refused(write: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        document.read(write(text))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file not found"):
        load(tmp_path / "none.yaml")
