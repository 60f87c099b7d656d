"""4-bit errors against their definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.outliers.measure import quantization_errors as errors
from dfrot.quant.activations import fake_quantize

MakeCheckpoint = Callable[..., Path]


def test_hadamard_errors_are_taken_back_into_the_own_basis() -> None:
    rows = torch.randn(20, 48)
    torch.testing.assert_close(
        errors.from_hadamard_basis(errors.to_hadamard_basis(rows), None), rows, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        errors.from_hadamard_basis(errors.to_hadamard_basis(rows, 16), 16), rows, atol=1e-5, rtol=1e-5
    )


def test_activation_error_is_what_rounding_does_to_the_output() -> None:
    rows, weight, massive = torch.randn(64, 32), torch.randn(8, 32), torch.zeros(64, dtype=torch.bool)
    measured = errors.activation_errors(rows, massive, [weight], None, None, False)["none"]
    error = fake_quantize(rows, 4, False) - rows
    assert measured["relative"] == pytest.approx(float(error.square().sum() / rows.square().sum()), rel=1e-5)
    output = (error @ weight.T).square().sum() / (rows @ weight.T).square().sum()
    assert measured["output"] == pytest.approx(float(output), rel=1e-5)


def test_folding_a_gain_takes_its_outliers_out_of_the_activations() -> None:
    gain = torch.ones(32)
    gain[3] = 30.0
    rows, weight = torch.randn(256, 32) * gain, torch.randn(8, 32) / gain
    nothing_massive = torch.zeros(256, dtype=torch.bool)
    measured = errors.activation_errors(rows, nothing_massive, [weight], gain, None, True)
    assert measured["hadamard"]["output"] < 0.1 * measured["none"]["output"]
