"""R1 for outputs: the loss is what it says, gradients are right, the result is orthogonal and betters the start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot.rotation.hadamard import randomized_hadamard
from dfrot.rotation.refinement.output_error import (
    SKETCH,
    NormOutputs,
    OutputRefinement,
    cayley,
    reader_factor,
    refine_outputs,
    rounded,
)
from dfrot.rotation.refinement.polar import orthogonality_error
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer

WIDTH = 32
GRIDS = [TokenQuantizer(4, symmetric, clip) for symmetric in (False, True) for clip in (1.0, 0.85)]


def taps(count: int = 3, rows: int = 2000) -> list[NormOutputs]:
    """Rows in a subspace of a quarter of the width, with readers that amplify half of the directions by 10."""
    generator = torch.Generator().manual_seed(5)
    basis = torch.randn(WIDTH // 4, WIDTH, generator=generator)
    made = []
    for _ in range(count):
        values = torch.randn(rows, WIDTH // 4, generator=generator).pow(3) @ basis
        values += 0.1 * torch.randn(rows, WIDTH, generator=generator)
        values *= (WIDTH / values.square().sum(1, keepdim=True)).sqrt()
        readers = torch.randn(48, WIDTH, generator=generator)
        readers[:, ::2] *= 10
        made.append(NormOutputs(values.bfloat16(), readers))
    return made


def unsigned(matrix: Tensor) -> Tensor:
    return torch.ones(3, len(matrix))


def refined(steps: int, seed: int = 0) -> OutputRefinement:
    return refine_outputs(taps(), randomized_hadamard(WIDTH, 0), unsigned, TokenQuantizer(4), steps, seed)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rounding_is_that_of_the_quantizer(grid: TokenQuantizer) -> None:
    rows = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(0))
    rows[3], rows[4] = 0.0, rows[4].abs()
    torch.testing.assert_close(rounded(rows, grid), grid.quantize(rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gradients_pass_through_the_range(grid: TokenQuantizer) -> None:
    """Where all values lie on levels, a value that is scaled with its row moves its levels with it."""
    row = torch.tensor([[-7.0, 0.0, 3.0, 8.0]]) * 0.25
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    rounded(row.double() * factor, grid).sum().backward()  # type: ignore[no-untyped-call]
    assert float(factor.grad) == pytest.approx(float(grid.quantize(row).sum()), rel=1e-6)  # type: ignore[arg-type]


def test_cayley_is_orthogonal_and_starts_at_the_identity() -> None:
    parameter = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert orthogonality_error(cayley(parameter)) < 1e-12
    assert torch.equal(cayley(torch.zeros_like(parameter)), torch.eye(WIDTH, dtype=torch.float64))


def test_the_factor_is_exact_up_to_its_limit_and_unbiased_beyond() -> None:
    generator = torch.Generator().manual_seed(3)
    errors = torch.randn(64, WIDTH, generator=generator)
    gain = torch.rand(WIDTH, generator=generator) + 0.5
    for rows in (40, SKETCH + 40):
        weights = [torch.randn(rows // 2, WIDTH, generator=generator) for _ in range(2)]
        expected = sum((errors * gain @ weight.T).square().sum(1) for weight in weights)
        found = (errors @ reader_factor(weights, gain, seed=0).T).square().sum(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    wide = torch.randn(8, SKETCH + 8, generator=generator)
    weight = torch.randn(2 * SKETCH, SKETCH + 8, generator=generator)
    factor = reader_factor([weight], torch.ones(SKETCH + 8), seed=0)
    assert factor.shape == (SKETCH, SKETCH + 8)
    ratio = (wide @ factor.T).square().sum() / (wide @ weight.T).square().sum()
    assert float(ratio) == pytest.approx(1, abs=0.05)


def test_held_out_error_falls_and_the_result_is_orthogonal() -> None:
    result = refined(100)
    start, best = result.curve[0][1], min(error for _, error in result.curve)
    assert best < 0.8 * start
    assert dict(result.curve)[result.best] == best
    assert orthogonality_error(result.matrix) < 1e-13
    assert [step for step, _ in result.curve] == [0, 25, 50, 75, 100]


def test_it_repeats_and_the_seed_matters() -> None:
    assert torch.equal(refined(10).matrix, refined(10).matrix)
    assert not torch.equal(refined(10).matrix, refined(10, seed=1).matrix)


def test_no_steps_leave_the_start() -> None:
    assert torch.equal(refined(0).matrix, randomized_hadamard(WIDTH, 0))


def test_a_start_that_nothing_betters_stays() -> None:
    """Rows that round to themselves: no turn can lower an error of zero."""
    rows = torch.randint(-7, 8, (400, WIDTH), generator=torch.Generator().manual_seed(4)).float()
    rows[:, 0], rows[:, 1] = -7, 8
    tap = NormOutputs(rows.bfloat16(), torch.eye(WIDTH))
    eye = torch.eye(WIDTH, dtype=torch.float64)
    result = refine_outputs([tap], eye, lambda matrix: torch.ones(1, WIDTH), TokenQuantizer(4), 25, 0)
    assert result.best == 0
    assert torch.equal(result.matrix, eye)


def test_signs_behind_the_rotation_are_taken_into_account() -> None:
    """With gains of -1 an asymmetric range is mirrored: the errors are the same, and so is the result."""
    start, grid = randomized_hadamard(WIDTH, 0), TokenQuantizer(4)
    plain = refine_outputs(taps(), start, unsigned, grid, 5, 0)
    mirrored = refine_outputs(taps(), start, lambda matrix: -unsigned(matrix), grid, 5, 0)
    torch.testing.assert_close(mirrored.matrix, plain.matrix, rtol=0, atol=1e-2)
