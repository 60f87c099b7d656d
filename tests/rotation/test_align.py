from __future__ import annotations

import pytest
import torch

from dfrot.errors import InputError
from dfrot.quant.activations import fake_quantize
from dfrot.rotation.align import aligned, common_direction
from dfrot.rotation.hadamard import randomized_hadamard
from dfrot.rotation.refinement.calibration_rows import CalibrationRows
from dfrot.rotation.rotation import Rotation

SIZE = 96


def rows_with(direction: torch.Tensor, amplitude: float) -> torch.Tensor:
    noise = torch.randn(300, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return noise - (noise @ direction)[:, None] * direction + amplitude * direction


def unit(seed: int) -> torch.Tensor:
    vector = torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def relative_error(rows: torch.Tensor, matrix: torch.Tensor, symmetric: bool = False) -> float:
    turned = (rows @ matrix).float()
    return float((fake_quantize(turned, 4, symmetric) - turned).square().sum() / rows.square().sum())


def test_the_direction_becomes_a_constant_and_the_matrix_stays_orthogonal() -> None:
    start, direction = randomized_hadamard(SIZE, 0), unit(0)
    matrix = aligned(start, direction)
    image = direction @ matrix
    assert torch.allclose(image, image[0].expand(SIZE), atol=1e-12)
    assert Rotation(matrix, "hadamard", 0).require_orthogonal() < 1e-12
    assert float(matrix.abs().max()) < 0.5  # spikes stay spread
    assert torch.allclose(aligned(matrix, direction), matrix, atol=1e-12)


def test_a_common_direction_costs_an_asymmetric_quantizer_nothing() -> None:
    start, direction = randomized_hadamard(SIZE, 0), unit(0)
    rows = rows_with(direction, 20.0)
    matrix = aligned(start, direction)
    asymmetric, symmetric = (
        relative_error(rows, matrix, choice) / relative_error(rows, start, choice) for choice in (False, True)
    )
    assert asymmetric < 0.4
    assert symmetric > 1.5 * asymmetric  # no offset absorbs the constant


def test_the_common_direction_is_found() -> None:
    direction = unit(3)
    rows = rows_with(direction, 9.0).float()
    weight = torch.ones(len(rows))
    nothing = torch.zeros(len(rows), dtype=torch.long)
    vector, share = common_direction(
        CalibrationRows(rows, weight, nothing.bool(), nothing, nothing, nothing, ("norm",), len(rows))
    )
    assert abs(float(vector @ direction)) == pytest.approx(1, abs=5e-3)
    assert share == pytest.approx(81 / (81 + SIZE - 1), rel=0.05)


def test_no_unit_vector_is_refused() -> None:
    with pytest.raises(InputError, match="no unit vector"):
        aligned(randomized_hadamard(SIZE, 0), 2 * unit(0))
