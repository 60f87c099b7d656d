"""The error that a gate compares with its limit."""

from __future__ import annotations

import math

import torch

from dfrot.bench.kernels.case import relative_error


def test_error_covers_all_outputs_nan_and_shapes() -> None:
    ones = torch.ones(3)
    assert relative_error(ones, ones) == 0.0
    assert relative_error((ones, 2 * ones), (ones, ones)) == 1.0
    assert math.isinf(relative_error(torch.tensor([1.0, math.nan]), torch.ones(2)))
    assert math.isinf(relative_error(torch.ones(2), ones))
