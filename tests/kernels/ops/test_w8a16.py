"""Products with 8-bit weights and floating activations."""

from __future__ import annotations

import pytest
import torch

from dfrot_kernels import native

# rows, output columns, inner size, group
SHAPES = [
    (1, 1, 1, 0),
    (1, 7, 63, 0),
    (1, 65, 1000, 128),
    (2, 64, 96, 32),
    (3, 63, 65, 16),
    (7, 33, 257, 128),
    (13, 16, 576, 0),
    (16, 17, 576, 64),
    (17, 40, 31, 0),
    (65, 100, 63, 48),
    (5, 9, 50, 64),
]
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}


def rows(m: int, k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(31 * m + k)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_definition(isa, example, shape, dtype):
    m, n, k, group = shape
    e = example(n, k, group, True, bits=8)
    x = rows(m, k, dtype)
    product = torch.ops.dfq.w8a16_mm(x[None], e.weight.packed, e.weight.scale, group)
    assert product.shape == (1, m, n)
    assert product.dtype == dtype
    limit = x.double().abs() @ e.exact().abs().T
    assert ((product[0].double() - x.double() @ e.exact().T).abs() <= 4 * DTYPES[dtype] * limit + 1e-30).all()


@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_bits_they_have_alone(isa, example, threads, group, dtype):
    if isa == "reference":
        pytest.skip("plain torch promises no such thing")
    w, x = example(130, 200, group, True, bits=8).weight, rows(37, 200, dtype)
    alone = torch.cat([torch.ops.dfq.w8a16_mm(row[None], w.packed, w.scale, group) for row in x])
    for count in (1, 2, 3):
        threads(count)
        for m in (2, 3, 5, 16, 17, 37):
            assert torch.equal(torch.ops.dfq.w8a16_mm(x[:m], w.packed, w.scale, group), alone[:m])


@pytest.mark.skipif(not native.active(), reason="no native library here")
@pytest.mark.parametrize("group", [0, 32])
def test_every_instruction_set_gives_the_same_bits(isa, example, group):
    """Sixteen lanes, each multiplied and added in float32, folded in halves."""
    if isa == "reference":
        pytest.skip("plain torch sums in an order of its own")
    w, x = example(50, 333, group, True, bits=8).weight, rows(6, 333)
    weight = w.dequantize() if group else (w.codes().float() - 128)
    lanes = torch.zeros(6, 50, 16)
    for begin in range(0, 333, 16):
        part = torch.nn.functional.pad(weight[:, begin : begin + 16], (0, max(0, begin + 16 - 333)))
        own = torch.nn.functional.pad(x[:, begin : begin + 16], (0, max(0, begin + 16 - 333)))
        lanes = lanes + own[:, None] * part[None]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    total = lanes[..., 0] if group else lanes[..., 0] * w.scale.float()[:, 0]
    assert torch.equal(torch.ops.dfq.w8a16_mm(x, w.packed, w.scale, group), total)


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (3, 5, 0)])
def test_empty_products(isa, shape):
    m, n, k = shape
    packed, scale = torch.zeros(n, k, dtype=torch.uint8), torch.ones(n, 1, dtype=torch.bfloat16)
    product = torch.ops.dfq.w8a16_mm(torch.ones(m, k), packed, scale, 0)
    assert product.shape == (m, n)
    assert (product == 0).all()


@pytest.mark.parametrize("group", [24, 8])
def test_groups_that_are_no_whole_lanes_are_refused(isa, example, group):
    w = example(4, 48, group, True, bits=8).weight
    with pytest.raises(ValueError, match="multiple of 16"):
        torch.ops.dfq.w8a16_mm(rows(2, 48), w.packed, w.scale, group)
