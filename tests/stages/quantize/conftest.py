"""A small model with online rotations, and its calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings


@pytest.fixture(scope="module")
def model(build: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"), online=True)


@pytest.fixture(scope="module")
def cal(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage") / "cal"
    calibrate(model, out, CalibrateSettings(str(text), samples=4, seqlen=24))
    return out
