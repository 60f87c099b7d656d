"""Resets of massive activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.quant.resets import Reset

MakeCheckpoint = Callable[..., Path]


def test_a_reset_touches_what_is_massive_only() -> None:
    hidden = torch.tensor([[1.0, 5.0], [200.0, 300.0], [-150.0, 0.0]])
    out = Reset("m", 0, 100.0, 7.0).apply(hidden)
    assert out.tolist() == [[1.0, 5.0], [7.0, 300.0], [7.0, 0.0]]
    assert hidden[1, 0] == 200.0


@pytest.mark.parametrize(
    "value",
    [{}, {"module": "m", "channel": -1, "above": 1, "to": 0}, {"module": "m", "channel": 0, "above": 0, "to": 0}],
)
def test_a_malformed_reset_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="reset"):
        Reset.from_dict(value)
