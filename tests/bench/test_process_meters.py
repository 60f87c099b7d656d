"""What a block of code costs this process."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from dfrot.bench import process_meters
from dfrot.bench.process_meters import StageMeter


def test_the_peak_is_that_of_the_block() -> None:
    if not process_meters.CLEAR_REFS.is_file():
        pytest.skip("the system has no /proc/self/clear_refs")
    with StageMeter() as large:
        kept = torch.ones(50_000_000)
        time.sleep(0.01)
        del kept
    with StageMeter() as small:
        pass
    assert large.peak_memory is not None
    assert small.peak_memory is not None
    assert large.peak_memory - small.peak_memory > 150e6  # the tensor is gone, and so is its peak
    assert large.seconds >= 0.01


def test_no_peak_is_claimed_where_it_cannot_be_restarted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_meters, "CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    with StageMeter() as meter:
        pass
    assert meter.peak_memory is None
