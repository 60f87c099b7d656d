"""Contenders whose engine is `fake_engine.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfrot.race.driver_process import loop_command
from dfrot.race.field import Contender

CPUS = [0]
MakeContender = Callable[..., Contender]


@pytest.fixture
def fake(tmp_path: Path) -> MakeContender:
    """A function that makes a contender called `name` that behaves in the given way."""

    def make(name: str, **behaviour: Any) -> Contender:
        path = tmp_path / f"{name.replace(' ', '-')}.json"
        path.write_text(json.dumps(behaviour))
        command = loop_command(sys.executable, "fake_engine", CPUS, {"PYTHONPATH": str(Path(__file__).parent)})
        return Contender(name, "fake", path, tuple(command), {"weights": 4})

    return make
