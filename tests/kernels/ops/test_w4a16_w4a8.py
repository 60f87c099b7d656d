"""Matmuls with packed 4-bit weights against float64 from the definition."""

from __future__ import annotations

import pytest
import torch

from dfrot_kernels.ops import references as ref

# rows, output columns, inner size, group: one row, odd sizes, short last groups, more than one tile of everything
SHAPES = [
    (1, 1, 1, 0),
    (1, 7, 63, 0),
    (1, 65, 1000, 128),
    (2, 64, 96, 32),
    (3, 63, 65, 32),
    (7, 65, 130, 64),
    (7, 33, 257, 128),
    (13, 16, 2048, 0),
    (63, 40, 512, 128),
    (65, 1000, 63, 0),
    (400, 48, 160, 64),
    (5, 9, 50, 7),
    (4, 130, 1, 32),
]
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    assert got.isfinite().all()
    return float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def activations(m: int, k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(31 * m + k)).to(dtype)


def tokens(m: int, k: int, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes over the whole range, the most negative one included, with scales and zero points."""
    g = torch.Generator().manual_seed(17 * m + k)
    half = 2 ** (bits - 1)
    q = torch.randint(-half, half, (m, k), generator=g, dtype=torch.int8)
    zero = torch.zeros(m, dtype=torch.int32)
    if not symmetric:
        zero = torch.randint(-half, half, (m,), generator=g, dtype=torch.int32)
    return q, torch.rand(m, generator=g) + 0.1, zero


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_w4a16(isa, example, shape, symmetric, dtype):
    m, n, k, group = shape
    e = example(n, k, group, symmetric)
    w, x = e.weight, activations(m, k, dtype)
    got = torch.ops.dfq.w4a16_mm(x, w.packed, w.scale, w.zero, group)
    assert got.dtype == dtype
    assert got.shape == (m, n)
    # one output may cancel: the error is measured against the size of what was added up
    limit = x.double().abs() @ e.exact().abs().T
    wanted = x.double() @ e.exact().T
    assert ((got.double() - wanted).abs() <= 4 * DTYPES[dtype] * limit + 1e-30).all()
    if k > 1:
        assert relative(got, wanted) <= 4 * DTYPES[dtype]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("a_bits", [4, 8])
def test_integer_products_are_the_bits_of_the_reference(isa, example, shape, symmetric, a_bits):
    m, n, k, group = shape
    e = example(n, k, group, symmetric)
    w, (q, x_scale, x_zero) = e.weight, tokens(m, k, a_bits, symmetric)
    op = torch.ops.dfq.w4a4_mm if a_bits == 4 else torch.ops.dfq.w4a8_mm
    got = op(q, x_scale, x_zero, w.packed, w.scale, w.zero, group)
    assert got.dtype == torch.float32
    exact = (x_scale.double()[:, None] * (q.double() - x_zero.double()[:, None])) @ e.exact().T
    assert (got.double() - exact).norm() <= 1e-6 * exact.norm() + 1e-30
    assert torch.equal(got, ref.w4a8_mm(q, x_scale, x_zero, w.packed, w.scale, w.zero, group))


@pytest.mark.parametrize("a_bits", [4, 8])
@pytest.mark.parametrize("k", [4096, 11008])
@pytest.mark.parametrize(("q_value", "code"), [(-1, 15), (1, 15), (-1, 0)])
def test_extreme_codes_do_not_overflow(isa, a_bits, k, q_value, code):
    """All products at the same end of the range: 16-bit partial sums that were added too long would wrap."""
    half = 2 ** (a_bits - 1)
    value = -half if q_value < 0 else half - 1
    q = torch.full((7, k), value, dtype=torch.int8)
    packed = torch.full((17, k // 2), code * 17, dtype=torch.uint8)
    scale = torch.ones(17, 1, dtype=torch.bfloat16)
    op = torch.ops.dfq.w4a4_mm if a_bits == 4 else torch.ops.dfq.w4a8_mm
    got = op(q, torch.ones(7), torch.zeros(7, dtype=torch.int32), packed, scale, None, 0)
    assert (got == value * (code - 8) * k).all()


def test_w4a4_takes_codes_wider_than_it_expects(isa, example):
    """Codes of eight bits through the four-bit entry give the right answer, never a wrapped one."""
    e = example(33, 2048, 0, True)
    w, (q, x_scale, x_zero) = e.weight, tokens(9, 2048, 8, False)
    args = (q, x_scale, x_zero, w.packed, w.scale, w.zero, 0)
    assert torch.equal(torch.ops.dfq.w4a4_mm(*args), ref.w4a8_mm(*args))


@pytest.mark.parametrize("m", [1, 5, 70, 700])
@pytest.mark.parametrize("group", [0, 64])
def test_any_number_of_threads_gives_the_same_bits(isa, example, threads, m, group):
    if isa == "reference":
        pytest.skip("plain torch promises no such thing")
    w = example(300, 515, group).weight
    x, (q, x_scale, x_zero) = activations(m, 515), tokens(m, 515, 8, False)
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        results.append(
            (
                torch.ops.dfq.w4a16_mm(x, w.packed, w.scale, w.zero, group),
                torch.ops.dfq.w4a8_mm(q, x_scale, x_zero, w.packed, w.scale, w.zero, group),
                torch.cat([t.flatten().double() for t in torch.ops.dfq.quantize_per_token(x, 4, False, 1.0)]),
                torch.ops.dfq.hadamard(x[:, :512], torch.ones(1, 1), 128),
            )
        )
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("m", [8, 600])
def test_a_row_does_not_depend_on_its_neighbours(isa, example, m):
    """The rows of a batch are computed as they are in a permuted batch: nothing leaks across tiles."""
    if isa == "reference":
        pytest.skip("plain torch promises no such thing")
    w = example(70, 300, 64).weight
    x = activations(m, 300)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(0))
    got = torch.ops.dfq.w4a16_mm(x, w.packed, w.scale, w.zero, 64)
    assert torch.equal(torch.ops.dfq.w4a16_mm(x[order], w.packed, w.scale, w.zero, 64), got[order])


def test_leading_dimensions_views_and_no_rows(isa, example):
    w = example(10, 66, 32).weight
    x = activations(12, 132)[:, ::2]
    flat = torch.ops.dfq.w4a16_mm(x, w.packed, w.scale, w.zero, 32)
    deep = torch.ops.dfq.w4a16_mm(x.unflatten(0, (3, 4)), w.packed, w.scale, w.zero, 32)
    assert torch.equal(deep, flat.unflatten(0, (3, 4)))
    assert torch.ops.dfq.w4a16_mm(x[3], w.packed, w.scale, w.zero, 32).shape == (10,)
    assert torch.ops.dfq.w4a16_mm(x[:0], w.packed, w.scale, w.zero, 32).shape == (0, 10)
    spread = w.packed.T.contiguous().T
    assert torch.equal(torch.ops.dfq.w4a16_mm(x, spread, w.scale, w.zero, 32), flat)
    q, x_scale, x_zero = tokens(0, 66, 8, True)
    assert torch.ops.dfq.w4a8_mm(q, x_scale, x_zero, w.packed, w.scale, w.zero, 32).shape == (0, 10)


def test_nan_activations_stay_visible_in_their_row(isa, example):
    w = example(20, 70, 32).weight
    x = activations(9, 70)
    x[4, 69] = float("nan")
    got = torch.ops.dfq.w4a16_mm(x, w.packed, w.scale, w.zero, 32)
    assert got[4].isnan().all()
    assert got[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_two_callers_at_once(example, threads):
    """ctypes releases the interpreter lock: calls from two Python threads must not share scratch memory."""
    from concurrent.futures import ThreadPoolExecutor

    threads(2)
    w = example(256, 512, 128).weight
    inputs = [activations(60 + i, 512) for i in range(8)]

    def product(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.dfq.w4a16_mm(x, w.packed, w.scale, w.zero, 128)

    wanted = [product(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(product, inputs), wanted, strict=True):
                assert torch.equal(got, expected)
