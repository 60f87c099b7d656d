"""The quantizer in the loop is the one of deployment."""

from __future__ import annotations

import pytest
import torch

from dfrot.errors import InputError
from dfrot.quant.activations import fake_quantize
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", [1.0, 0.85])
def test_equals_the_simulated_deployment_quantizer(bits: int, symmetric: bool, clip: float) -> None:
    rows = torch.randn(200, 48, generator=torch.Generator().manual_seed(0))
    rows[0] = 0.0
    rows[1] = rows[1].abs()  # ranges include zero
    rows[2] *= 1e4
    grid = TokenQuantizer(bits, symmetric, clip)
    torch.testing.assert_close(grid.quantize(rows), fake_quantize(rows, bits, symmetric, clip), rtol=1e-6, atol=0)


def test_levels_are_integers_that_bfloat16_holds() -> None:
    for bits in (4, 8):
        for symmetric in (True, False):
            levels, _ = TokenQuantizer(bits, symmetric).levels(torch.randn(50, 64))
            assert torch.equal(levels, levels.round())
            assert torch.equal(levels, levels.bfloat16().float())


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 9}, {"clip": 0.0}, {"clip": 1.1}, {"clip": float("nan")}])
def test_bad_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        TokenQuantizer(**wrong)  # type: ignore[arg-type]
