"""Planted rows: common tokens with channel gains, massive tokens that are nearly constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dfrot.bench.refinement.synthetic_rows import unit_rms
from dfrot.rotation.refinement.calibration_rows import CalibrationRows, unit_weight_rows


@pytest.fixture
def planted() -> Callable[..., CalibrationRows]:
    def build(width: int = 64, common: int = 3000, massive: int = 12, seed: int = 0) -> CalibrationRows:
        draw = torch.Generator().manual_seed(seed)
        gains = torch.exp(0.5 * torch.randn(width, generator=draw))
        rows = torch.randn(common, width, generator=draw) * gains
        constant = torch.randn(width, generator=draw)
        heavy = constant + 0.2 * torch.randn(massive, width, generator=draw)
        heavy[:, 5], heavy[:, 17] = 70.0, -45.0
        return unit_weight_rows(unit_rms(torch.cat([rows, heavy])))

    return build
