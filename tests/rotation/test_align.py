from __future__ import annotations

import pytest
import torch

from dfrot.quant.activations import fake_quantize
from dfrot.rotation.align import aligned, constant_share, gain_signs, mean_share, tap_means
from dfrot.rotation.hadamard import randomized_hadamard
from dfrot.rotation.refinement.calibration_rows import CalibrationRows
from dfrot.rotation.rotation import Rotation

SIZE, TAPS = 96, 6


def sample(amplitude: float = 10.0) -> CalibrationRows:
    """50 rows behind each of 6 norms, with a mean of their own."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(TAPS, SIZE, generator=generator)
    means *= amplitude / means.norm(dim=1, keepdim=True)
    rows = torch.randn(TAPS * 50, SIZE, generator=generator)
    tap = torch.arange(TAPS).repeat_interleave(50)
    massive = torch.zeros(len(rows), dtype=torch.bool)
    massive[7] = True
    rows += means[tap]
    rows[7] = 1e4
    weight = torch.full((len(rows),), 2.0)
    zeros = torch.zeros(len(rows), dtype=torch.long)
    return CalibrationRows(rows, weight, massive, tap, zeros, zeros, tuple("abcdef"), 2 * len(rows))


def test_means_leave_massive_rows_out() -> None:
    rows = sample()
    means = tap_means(rows)
    assert torch.allclose(means[1], rows.rows[50:100].double().mean(0), atol=1e-6)
    assert float(means.abs().max()) < 10
    assert mean_share(rows, means) == pytest.approx(100 / (100 + SIZE), rel=0.1)


def test_all_means_become_constants_behind_the_signs() -> None:
    means, start = tap_means(sample()), randomized_hadamard(SIZE, 0)
    matrix = aligned(start, means)
    assert Rotation(matrix, "hadamard", 0).require_orthogonal() < 1e-12
    assert constant_share(start, means) < 0.75
    assert constant_share(matrix, means) > 0.9
    assert bool((((means @ matrix) * gain_signs(matrix, means)) >= 0).all())


def test_spikes_stay_spread() -> None:
    matrix = aligned(randomized_hadamard(SIZE, 0), tap_means(sample()))
    assert float(matrix.abs().max()) < 0.45  # 1 for a rotation that leaves a channel alone, 0.1 for a Hadamard matrix


def test_asymmetric_grids_gain_what_the_means_held() -> None:
    rows = sample(14.0)
    means, start = tap_means(rows), randomized_hadamard(SIZE, 0)
    matrix = aligned(start, means)
    x = rows.rows[~rows.massive].double()
    signs = gain_signs(matrix, means)[rows.tap[~rows.massive]]

    def error(turned: torch.Tensor) -> float:
        values = turned.float()
        return float((fake_quantize(values, 4, False) - values).square().sum())

    assert error((x @ matrix) * signs) < 0.6 * error(x @ start)
    assert error((x @ matrix) * signs) < 0.7 * error(x @ matrix)
