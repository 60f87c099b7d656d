"""Stopped at every single step, deterministically: before and after each unit is journaled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfrot.quant.scheme import QuantScheme
from dfrot.stage_folder import Stage
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

Build = Callable[..., Path]


class Stopped(Exception):
    """Stands for the power cord."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Raise at the step-th event; each `mark` has one event before the journal line and one after it."""
    mark, events = Stage.mark, [0]

    def event() -> None:
        events[0] += 1
        if events[0] == step:
            raise Stopped

    def marked(self: Stage, unit: str, value: Any = None) -> None:
        event()
        mark(self, unit, value)
        event()

    monkeypatch.setattr(Stage, "mark", marked)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(job: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run `job` once whole, then stopped at event 1, 2, 3 ... and resumed. Returns how many stops there were."""
    job(tmp_path / "exact")
    exact = contents(tmp_path / "exact")
    step = 1
    while True:
        out = tmp_path / f"stopped{step}"
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            try:
                job(out)
                return step - 1
            except Stopped:
                pass
        assert not out.exists()
        job(out)
        assert contents(out) == exact
        step += 1


def test_calibrate(build: Build, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tmp_path / "model", online=True, num_hidden_layers=2)
    stops = check(lambda out: calibrate(model, out, CalibrateSettings(str(text), 2, 16)), tmp_path, monkeypatch)
    assert stops == 2 * (1 + 2 + 1)  # embedding, blocks, head


@pytest.mark.parametrize(("propagate", "compensate"), [(True, 0.5), (False, 0.0)])
def test_quantize(
    build: Build, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, propagate: bool, compensate: float
) -> None:
    model = build(tmp_path / "model", online=True, num_hidden_layers=2)
    calibrate(model, tmp_path / "cal", CalibrateSettings(str(text), 2, 16))
    settings = QuantizeSettings(QuantScheme.parse("w4a4kv4"), propagate=propagate, compensate=compensate, keep=())
    stops = check(lambda out: quantize(model, tmp_path / "cal", out, settings), tmp_path, monkeypatch)
    assert stops == 2 * (1 + 1 + 2 + 1)


def test_quantize_under_a_budget(build: Build, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tmp_path / "model", online=True, num_hidden_layers=2)
    calibrate(model, tmp_path / "cal", CalibrateSettings(str(text), 2, 16))
    settings = QuantizeSettings(QuantScheme.parse("w4a4kv4"), budget=5.0)
    stops = check(lambda out: quantize(model, tmp_path / "cal", out, settings), tmp_path, monkeypatch)
    assert stops == 2 * (1 + 1 + 1 + 2 + 1)  # budget, key shift, dense tensors, blocks, head
