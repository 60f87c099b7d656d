"""Products of prepacked weights with many rows (prefill), where every instruction set has kernels of its own."""

from __future__ import annotations

import random

import pytest
import torch

from dfrot_kernels.ops import references as ref
from dfrot_kernels.prepared import PreparedWeight

# rows, output columns, inner size, group: blocks and tiles cut short, one piece of k and several, groups that are
# shorter than a piece (the last one ragged), that fill it, and that are longer
SHAPES = [
    (17, 16, 8, 0),
    (18, 64, 128, 32),
    (23, 65, 130, 64),
    (64, 40, 512, 128),
    (33, 7, 1100, 0),
    (100, 130, 257, 128),
    (19, 63, 1048, 520),
    (31, 48, 1000, 8),
    (47, 33, 600, 136),
    (600, 80, 96, 32),
]
DTYPES = {torch.float32: 2e-5, torch.bfloat16: 4e-3, torch.float16: 6e-4}


def tokens(m: int, k: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes over the whole range, the most negative one included, with scales and zero points."""
    g = torch.Generator().manual_seed(17 * m + k)
    q = torch.randint(-128, 128, (m, k), generator=g, dtype=torch.int8)
    zero = None if symmetric else torch.randint(-128, 128, (m,), generator=g, dtype=torch.int32)
    return q, torch.rand(m, generator=g) + 0.1, zero


def integer_reference(
    w: PreparedWeight,
    q: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    return ref.w4a8_tiled_mm(q, x_scale, x_zero, w.tiles, w.scale, w.zero, w.sums, bias, w.shape[0], w.group, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_products_are_the_bits_of_the_reference(isa, example, shape, symmetric, dtype):
    m, n, k, group = shape
    w = PreparedWeight.from_packed(example(n, k, group, symmetric).weight)
    q, x_scale, x_zero = tokens(m, k, symmetric)
    bias = None if symmetric else torch.randn(n, generator=torch.Generator().manual_seed(n))
    got = w.integer_linear(q, x_scale, x_zero, bias, dtype)
    assert got.dtype == dtype
    assert torch.equal(got, integer_reference(w, q, x_scale, x_zero, bias, dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_float_products(isa, example, shape, symmetric, dtype):
    m, n, k, group = shape
    e = example(n, k, group, symmetric)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m + k)).to(dtype)
    bias = None if symmetric else torch.randn(n, generator=torch.Generator().manual_seed(n))
    got = PreparedWeight.from_packed(e.weight).linear(x, bias)
    assert got.dtype == dtype
    assert got.isfinite().all()
    extra = torch.zeros(n, dtype=torch.float64) if bias is None else bias.double()
    wanted = x.double() @ e.exact().T + extra
    # one output may cancel: the error is measured against the size of what was added up
    limit = x.double().abs() @ e.exact().abs().T + extra.abs()
    assert ((got.double() - wanted).abs() <= DTYPES[dtype] * limit).all()


def test_float32_that_bfloat16_holds_is_multiplied_exactly(isa, example):
    """Whole numbers: every term and every sum is exact, whichever parts the rows are split into."""
    g = torch.Generator().manual_seed(3)
    e = example(50, 264, 0, False)
    scale = torch.ones_like(e.weight.scale)
    w = PreparedWeight.from_packed(type(e.weight).from_codes(e.codes, scale, e.weight.zero, 4, 0))
    x = torch.randint(-100, 100, (40, 264), generator=g).float()
    x[:6, 0] = 257.0  # nine bits: this block of rows has a second part
    wanted = x.double() @ (e.codes.double() - e.weight.zero.double()).T
    assert torch.equal(w.linear(x).double(), wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_visible_in_its_row(isa, example, value, dtype):
    w = PreparedWeight.from_packed(example(20, 70, 0).weight)
    x = torch.randn(25, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[14, 69] = value
    got = w.linear(x)
    assert not got[14].isfinite().any()
    assert got[[i for i in range(25) if i != 14]].isfinite().all()


def test_zero_points_beyond_four_bits(isa, example):
    """The layout allows any byte as a zero point and any integer as that of a token."""
    e = example(40, 192, 64)
    zero = torch.randint(0, 256, e.weight.zero.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    packed = type(e.weight).from_codes(e.codes, e.weight.scale, zero, 4, 64)
    w = PreparedWeight.from_packed(packed)
    q, x_scale, x_zero = tokens(21, 192, False)
    x_zero[5] = 1 << 16
    got = w.integer_linear(q, x_scale, x_zero, None, torch.float32)
    assert torch.equal(got, integer_reference(w, q, x_scale, x_zero, None, torch.float32))
    x = torch.randn(21, 192, generator=torch.Generator().manual_seed(2))
    wanted = x.double() @ packed.dequantize().double().T
    assert (w.linear(x).double() - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize(("q_value", "code"), [(-128, 15), (127, 15), (-128, 0)])
@pytest.mark.parametrize("group", [0, 128])
def test_extreme_codes_do_not_overflow(isa, q_value, code, group):
    """All products at the same end of the range: partial sums that were added too long would wrap."""
    from dfrot_kernels.layouts import PackedWeight

    k = 11008
    q = torch.full((18, k), q_value, dtype=torch.int8)
    scale = torch.ones(17, k // group if group else 1, dtype=torch.bfloat16)
    w = PreparedWeight.from_packed(
        PackedWeight.from_codes(torch.full((17, k), code, dtype=torch.uint8), scale, None, 4, group)
    )
    got = w.integer_linear(q, torch.ones(18), None, None, torch.float32)
    assert (got == q_value * (code - 8) * k).all()


@pytest.mark.parametrize("group", [0, 32])
def test_any_number_of_threads_and_rows_gives_the_same_bits(isa, example, threads, group):
    w = PreparedWeight.from_packed(example(200, 520, group).weight)
    x = torch.randn(900, 520, generator=torch.Generator().manual_seed(5))
    q, x_scale, x_zero = tokens(900, 520, False)
    threads(1)
    floats, integers = w.linear(x), w.integer_linear(q, x_scale, x_zero, None, torch.bfloat16)
    for count in (2, 3, 4):
        threads(count)
        assert torch.equal(w.linear(x), floats)
        assert torch.equal(w.integer_linear(q, x_scale, x_zero, None, torch.bfloat16), integers)
    if isa != "reference":  # plain torch promises no such thing
        some = torch.arange(800, 850)
        assert torch.equal(w.linear(x[some]), floats[some])
        assert torch.equal(w.integer_linear(q[some], x_scale[some], x_zero[some], None, torch.bfloat16), integers[some])


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes(isa, example, threads, seed):
    draw = random.Random(seed)
    for _ in range(4):
        m, n, k = draw.randint(17, 90), draw.randint(1, 150), draw.randint(1, 700)
        group = draw.choice([0, *(g for g in (8, 24, 32, 64, 128, 256) if g < k)])
        threads(draw.randint(1, 4))
        w = PreparedWeight.from_packed(example(n, k, group, draw.random() < 0.5).weight)
        q, x_scale, x_zero = tokens(m, k, draw.random() < 0.5)
        got = w.integer_linear(q, x_scale, x_zero, None, torch.float32)
        assert torch.equal(got, integer_reference(w, q, x_scale, x_zero, None, torch.float32)), (m, n, k, group)
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).to(draw.choice(list(DTYPES)))
        wanted = x.double() @ w.to_packed().dequantize().double().T
        assert (w.linear(x).double() - wanted).norm() <= 4 * DTYPES[x.dtype] * wanted.norm() + 1e-30, (m, n, k, group)
