"""Scales as float16: exact, rounded and counted, or refused."""

from __future__ import annotations

import pytest
import torch

from dfrot.errors import UnsupportedError
from dfrot.export.float16_scales import Float16Rounding

gguf = pytest.importorskip("gguf")


def test_scales_outside_float16_are_counted_or_refused() -> None:
    rounding = Float16Rounding()
    exact = torch.tensor([2.0**-17, 1.0, 65280.0]).bfloat16().float()
    assert torch.equal(rounding.to_float16(exact, "w").float(), exact)
    assert rounding.to_dict() == {"count": 3, "rounded": 0, "worst_relative_error": 0.0}
    rounding.to_float16(torch.tensor([2.0**-22 * 1.1875]), "w")
    assert rounding.rounded == 1
    for bad in (1e-9, 70000.0):
        with pytest.raises(UnsupportedError, match="compressed-tensors"):
            rounding.to_float16(torch.tensor([bad]), "w")
