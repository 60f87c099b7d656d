"""What counts as a massive activation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dfrot.outliers.measure.criteria import Criteria, massive_entries

MakeCheckpoint = Callable[..., Path]


def test_criterion_is_the_published_one_at_width_4096() -> None:
    hidden = torch.full((4, 4096), 0.5)
    hidden[1, 7], hidden[2, 9] = 499.0, -501.0
    assert massive_entries(hidden, Criteria().limit(hidden)).tolist() == [[2, 9]]
    quiet = hidden / 10  # the ratio holds, the absolute threshold does not
    assert len(massive_entries(quiet, Criteria().limit(quiet))) == 0
