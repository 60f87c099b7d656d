from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.quant.modules.embedding import QuantEmbedding
from dfrot.quant.plan import LinearPlan
from dfrot_kernels.layouts import PackedWeight

GRIDS = [(8, 0, True), (8, 64, True), (4, 32, True), (4, 0, False), (4, 16, False)]


def make(
    bits: int, group: int, symmetric: bool, rows: int = 37, columns: int = 72, factor: float = 1.0
) -> QuantEmbedding:
    generator = torch.Generator().manual_seed(bits + group)
    groups = -(-columns // group) if group else 1
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    scale = (torch.rand(rows, groups, generator=generator) + 0.5).bfloat16()
    zero = None if symmetric else torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8, generator=generator)
    plan = LinearPlan("e", rows, columns, True, bits, group, symmetric, 16, False, 1.0, None, lookup=True)
    module = QuantEmbedding(plan, torch.bfloat16, factor)
    tensors: dict[str, Tensor] = {
        "weight_packed": PackedWeight.from_codes(codes, scale, zero, bits, group).packed,
        "weight_scale": scale,
    }
    if zero is not None:
        tensors["weight_zero"] = zero
    module.load_state_dict(tensors)
    module.prepare("e")
    return module


@pytest.mark.parametrize(("bits", "group", "symmetric"), GRIDS)
@pytest.mark.parametrize("columns", [72, 33, 1])
def test_rows_are_those_of_the_dense_table(bits: int, group: int, symmetric: bool, columns: int) -> None:
    module = make(bits, group, symmetric, columns=columns)
    table = module.stored_weight().dequantize().bfloat16()
    for shape in ((0,), (1,), (2, 3), (1, 5, 2)):
        ids = torch.randint(0, 37, shape)
        rows = module(ids)
        assert rows.shape == (*shape, columns)
        assert rows.dtype == torch.bfloat16
        assert torch.equal(rows, table[ids])
    assert torch.equal(module.dense()(torch.arange(37)), table)


def test_the_factor_is_applied_in_the_models_dtype() -> None:
    module = make(8, 0, True, factor=60.0**0.5)
    table = module.stored_weight().dequantize().bfloat16() * torch.tensor(60.0**0.5).bfloat16()
    assert torch.equal(module(torch.arange(37)), table)
    assert torch.equal(module.dense()(torch.arange(37)), table)


def test_casts_change_the_rows_and_not_the_scales() -> None:
    module = make(8, 0, True)
    exact = copy.deepcopy(module).double().float()
    assert exact.weight_scale.dtype == torch.bfloat16
    assert torch.equal(exact(torch.arange(37)), exact.stored_weight().dequantize())
    assert torch.equal(exact.bfloat16()(torch.arange(37)), module(torch.arange(37)))


@pytest.mark.parametrize("name", ["weight_scale", "weight_zero"])
def test_damaged_tables_are_refused_by_name(name: str) -> None:
    module = make(4, 16, False)
    getattr(module, name)[3, 1] = float("nan") if name == "weight_scale" else 16
    with pytest.raises(InputError, match=f"tensor e.{name}"):
        module.prepare("e")


def test_ids_outside_the_table_are_an_error() -> None:
    with pytest.raises(IndexError):
        make(8, 0, True)(torch.tensor([37]))
