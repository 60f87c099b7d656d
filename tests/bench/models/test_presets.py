"""Shapes of models for the bench."""

from __future__ import annotations

from typing import Any

import pytest

from dfrot.arch import describe
from dfrot.bench.models.presets import PRESETS, preset
from dfrot.errors import InputError

QUICK: dict[str, Any] = {"prefill": 16, "decode": 2, "repeats": 1}


def test_presets_are_consistent_models() -> None:
    for name in PRESETS:
        arch = describe(preset(name))
        assert arch.n_heads * arch.head_dim == arch.hidden
    with pytest.raises(InputError, match="unknown"):
        preset("900b")
