"""A small model with online rotations, and its calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.runtime.load import load_model
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


@pytest.fixture
def divergence() -> Callable[..., float]:
    """divergence(folder, reference, tokens): the mean KL divergence of one model's predictions from the other's."""

    def measure(folder: Path, reference: Path, tokens: torch.Tensor) -> float:
        models = (load_model(path, torch.float32) for path in (reference, folder))
        expected, actual = (model(tokens).logits.log_softmax(-1) for model in models)
        return float((expected.exp() * (expected - actual)).sum(-1).mean())

    return torch.no_grad()(measure)


@pytest.fixture
def same_bytes_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """same_bytes_after(run, owner, name, stops): `run(out)` is interrupted where `stops` stands for method `name` of
    `owner`, run again, and ends in the bytes of a run that nothing interrupted."""

    def check(run: Callable[[Path], Any], owner: type, name: str, stops: Callable[..., None]) -> None:
        run(tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stops)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "resumed")
        run(tmp_path / "resumed")
        for file in ("model.safetensors", "config.json", "stage.json"):
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes()

    return check
