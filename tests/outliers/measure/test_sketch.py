"""Sketches of per-channel distributions against exact statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.outliers.measure.sketch import ChannelSketch

MakeCheckpoint = Callable[..., Path]


def test_sketch_quantiles_are_near_the_exact_ones() -> None:
    rows = torch.randn(1001, 24) * torch.logspace(-3, 3, 24)
    sketch = ChannelSketch(24)
    sketch.add(rows)
    for share in (0.1, 0.5, 0.9):
        torch.testing.assert_close(sketch.quantile(share), rows.abs().quantile(share, 0), rtol=0.05, atol=0)
    torch.testing.assert_close(sketch.mean_square(), rows.double().square().mean(0))
    assert torch.equal(sketch.absmax, rows.abs().amax(0))


def test_share_above_counts_tokens() -> None:
    sketch = ChannelSketch(2)
    sketch.add(torch.tensor([[1.0, 100.0]] * 30 + [[64.0, 0.0]] * 10))
    assert sketch.share_above(16.0).tolist() == [0.25, 0.75]


def test_a_gaussian_has_kurtosis_three_and_a_spike_the_width() -> None:
    gaussian, pointed = ChannelSketch(512), ChannelSketch(512)
    gaussian.add(torch.randn(200, 512))
    rows = torch.zeros(10, 512)
    rows[:, 3] = 5.0
    pointed.add(rows)
    assert gaussian.kurtosis() == pytest.approx(3.0, rel=0.05)
    assert pointed.kurtosis() == pytest.approx(512.0)
