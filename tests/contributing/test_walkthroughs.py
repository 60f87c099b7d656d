"""The walk-throughs of CONTRIBUTING.md work as written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

import pytest

Follow = Callable[[str], list[str]]

# 100 s: each follows its diffs in a copy of the tree and runs tests there. `make walkthroughs`, part of `make check`.
pytestmark = pytest.mark.slow


def passed(output: str) -> int:
    """How many tests a pytest run passed."""
    match = re.search(r"(\d+) passed", output)
    return int(match[1]) if match else 0


def test_add_an_architecture(follow: Follow) -> None:
    tests, table = follow("Add an architecture")
    assert passed(tests) >= 6  # fused in float64, tied and untied, with two kinds of R1; packed; generating
    assert passed(table) >= 100


def test_add_an_export_format(follow: Follow) -> None:
    tests, table = follow("Add an export format")
    assert passed(tests) >= 10
    assert "packed rows" in table


def test_add_a_draft_model(follow: Follow) -> None:
    tests, _, evaluation = follow("Add a draft model")
    assert passed(tests) >= 8
    assert "2/2" in evaluation


@pytest.mark.skipif(shutil.which("cmake") is None, reason="builds the native library, which needs cmake")
def test_add_an_operator(follow: Follow) -> None:
    _, _, tests, doctor = follow("Add an operator")
    assert passed(tests) >= 8
    assert re.search(r"row_absmax\s+native-", doctor)
