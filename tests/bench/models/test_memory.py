"""Resident memory of a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfrot.bench.models import memory
from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.bench.process_meters import STATUS

QUICK: dict[str, Any] = {"prefill": 16, "decode": 2, "repeats": 1}


def test_memory_of_a_process_of_its_own(tmp_path: Path) -> None:
    if not STATUS.is_file():
        pytest.skip("this system does not report resident memory")
    folder = random_checkpoint(tmp_path / "model", preset("tiny"), "w4a8kv4")
    used = memory.measure_memory("dfq", folder, tmp_path / "memory.json", threads=1, prefill=8, decode=1)
    assert used["peak"] >= used["loaded"] >= used["imported"] > 10 << 20
    assert used["model"] == used["peak"] - used["imported"]
