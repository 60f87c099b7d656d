"""Balancing of query and key channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dfrot.outliers.fixes.query import tune_scale

MakeCheckpoint = Callable[..., Path]


def test_tuning_never_makes_the_scores_worse() -> None:
    key = torch.randn(2, 96, 16)
    key[:, :, [3, 11]] *= 30.0
    scale, account = tune_scale(torch.randn(4, 96, 16), key)
    assert account["score_error"] <= account["score_error_before"]
    assert torch.equal(scale[:, :8], scale[:, 8:])  # both channels of a rotation pair
