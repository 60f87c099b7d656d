"""Every operator of the bench against its reference."""

from __future__ import annotations

import math

import pytest
import torch

from dfrot.bench.kernels.case import Case, ProblemShape
from dfrot.bench.kernels.cases import fused, products
from dfrot.bench.kernels.cases.table import BUILDERS


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("rows", [1, 17])
def test_every_op_passes_its_gate(name: str, rows: int) -> None:
    if not hasattr(torch.ops.dfq, name):
        pytest.skip("not in this installation")
    shape = ProblemShape(48, 128, rows, 32, heads=4, kv_heads=2, head_dim=32, context=40)
    case = BUILDERS[name](shape, torch.Generator().manual_seed(0), 0)
    assert case.gate() <= case.limit
    assert case.nbytes > 0
    assert len(case.calls) >= 2


def test_codes_that_differ_by_one_are_counted() -> None:
    codes, scale, zero = torch.zeros(2, 8, dtype=torch.int8), torch.ones(2), torch.zeros(2, dtype=torch.int32)
    other = codes.clone()
    other[0, 0] = 1
    assert fused.share_of_different_codes((codes, scale, zero), (other, scale, zero)) == 1 / 16
    assert math.isinf(fused.share_of_different_codes((codes, scale, zero), (2 * other, scale, zero)))
    assert math.isinf(fused.share_of_different_codes((codes, scale, zero), (codes, 1.01 * scale, zero)))


def test_operands_cover_the_asked_memory() -> None:
    case: Case = products.w4a16_mm(ProblemShape(64, 128, 1), torch.Generator(), 100_000)
    assert len(case.calls) * 64 * 128 / 2 >= 90_000
