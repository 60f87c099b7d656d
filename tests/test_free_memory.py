"""A container's limit counts where it is below what the machine has free."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from dfrot.free_memory import free_memory
from dfrot.stages.quantize.waiting import LEAST, allowed

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    available = type("Memory", (), {"available": 64 * GIB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"memory.max": "max", "memory.current": 3 * GIB}, 64),
        ({"memory.max": 8 * GIB, "memory.current": 3 * GIB}, 5),
        ({"memory.max": 8 * GIB, "memory.current": 3 * GIB, "memory.stat": f"anon 1\ninactive_file {2 * GIB}"}, 7),
        ({"memory.max": 8 * GIB, "memory.current": 9 * GIB}, 0),
        ({"memory.max": 999 * GIB, "memory.current": 3 * GIB}, 64),
        ({"memory.max": 8 * GIB}, 64),
        ({"memory.max": "many", "memory.current": "few", "memory.stat": "inactive_file"}, 64),
        ({"memory/memory.limit_in_bytes": 6 * GIB, "memory/memory.usage_in_bytes": 2 * GIB}, 4),
    ],
)
def test_what_is_free_is_the_smallest_of_machine_and_container(
    tmp_path: Path, files: dict[str, object], expected: int
) -> None:
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    assert free_memory(tmp_path) == expected * GIB


@pytest.mark.usefixtures("machine")
def test_half_of_what_is_free_may_wait_shared_between_processes() -> None:
    assert allowed(None) == pytest.approx(32 * GIB / 1e9)
    assert allowed(None, 4) == pytest.approx(8 * GIB / 1e9)
    assert allowed(None, 1000) == LEAST
    assert allowed(0.5, 4) == 0.5
