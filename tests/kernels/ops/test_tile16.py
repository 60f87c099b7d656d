"""Products with prepacked 4-bit weights (tile16) against the definition and the canonical layout's reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dfrot_kernels import PreparedWeight, bindings, native
from dfrot_kernels.ops import references as ref
from dfrot_kernels.ops import tile16

# rows, output columns, inner size, group: every number of rows that decode takes at once, fewer than eight columns,
# short last blocks, tiles and groups, one to five tiles at a time, more rows than decode takes
SHAPES = [
    (1, 1, 1, 0),
    (1, 7, 5, 0),
    (2, 16, 8, 8),
    (3, 17, 63, 0),
    (4, 65, 1000, 128),
    (5, 64, 96, 32),
    (6, 33, 65, 32),
    (7, 130, 130, 64),
    (8, 80, 257, 128),
    (9, 31, 72, 24),
    (10, 40, 512, 128),
    (11, 100, 160, 64),
    (12, 48, 2048, 0),
    (13, 16, 264, 64),
    (14, 15, 50, 0),
    (15, 70, 88, 40),
    (16, 300, 64, 128),
    (17, 40, 104, 32),
    (50, 65, 136, 64),
]
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 6e-4}


def rows(m: int, k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(31 * m + k)).to(dtype)


def tokens(m: int, k: int, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes over the whole range with scales and zero points."""
    g, half = torch.Generator().manual_seed(17 * m + k), 2 ** (bits - 1)
    q = torch.randint(-half, half, (m, k), generator=g, dtype=torch.int8)
    return q, torch.rand(m, generator=g) + 0.1, torch.randint(-half, half, (m,), generator=g, dtype=torch.int32)


def integer(p: PreparedWeight, q, x_scale, x_zero, bias=None, dtype=torch.float32) -> torch.Tensor:
    return p.integer_linear(q, x_scale, x_zero, bias, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_layout_is_the_documented_one_and_nothing_is_lost(isa, example, shape):
    _, n, k, group = shape
    e = example(n, k, group)
    p = PreparedWeight.from_packed(e.weight)
    assert p.tiles.shape == (-(-n // 16), -(-k // 8), 64)
    g = torch.Generator().manual_seed(n + k)
    for _ in range(100):
        row, column = int(torch.randint(n, (), generator=g)), int(torch.randint(k, (), generator=g))
        byte = int(p.tiles[row // 16, column // 8, 4 * (row % 16) + column % 4])
        assert (byte >> 4 * (column % 8 // 4)) & 15 == int(e.codes[row, column])
    assert torch.equal(ref.tile_codes(p.tiles)[:n, :k], e.codes)
    again = p.to_packed()
    for name in ("packed", "scale", "zero", "group", "shape"):
        got, kept = getattr(again, name), getattr(e.weight, name)
        assert torch.equal(got, kept) if isinstance(got, torch.Tensor) else got == kept
    step = group or k
    for g in range(-(-k // step)):
        assert torch.equal(p.sums[g, :n], e.codes[:, g * step : (g + 1) * step].sum(1, dtype=torch.int32))
    assert not p.sums[:, n:].any()


@pytest.mark.parametrize("k", [1, 5, 13, 15])
def test_bits_behind_the_last_code_do_not_enter(isa, k):
    """The unused half of a row's last byte is not ours: a file may hold anything there."""
    packed = torch.full((3, (k + 1) // 2), 0xFF, dtype=torch.uint8)
    tiles, sums = torch.ops.dfq.prepack(packed, k, 0, True)
    assert ref.tile_codes(tiles).sum() == 3 * 15 * k
    assert sums.flatten().tolist() == [15 * k] * 3 + [0] * 13
    assert torch.equal(ref.unpack(torch.ops.dfq.unprepack(tiles, 3, k), 4, k), ref.unpack(packed, 4, k))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_integer_products_are_the_bits_of_the_reference(isa, example, shape, symmetric, shifted):
    m, n, k, group = shape
    w = example(n, k, group, symmetric).weight
    q, x_scale, x_zero = tokens(m, k)
    wanted = ref.w4a8_mm(q, x_scale, x_zero if shifted else torch.zeros_like(x_zero), w.packed, w.scale, w.zero, group)
    p = PreparedWeight.from_packed(w, with_sums=shifted)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(n))
    for dtype in DTYPES:
        got = integer(p, q, x_scale, x_zero if shifted else None, None, dtype)
        assert got.dtype == dtype
        assert torch.equal(got, wanted.to(dtype))
        assert torch.equal(integer(p, q, x_scale, x_zero if shifted else None, bias, dtype), (wanted + bias).to(dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_float_products(isa, example, shape, symmetric, dtype):
    m, n, k, group = shape
    e, x = example(n, k, group, symmetric), rows(m, k, dtype)
    p = PreparedWeight.from_packed(e.weight, with_sums=False)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(torch.bfloat16)
    for added in (None, bias):
        got = p.linear(x, added)
        assert got.dtype == dtype
        assert got.shape == (m, n)
        wanted = x.double() @ e.exact().T + (0 if added is None else added.double())
        # with zero points the kernel adds products with u - 8 and takes the rest out again
        size = x.double().abs() @ (e.exact().abs() + 8 * e.weight.scale.double().abs().amax(1)[:, None]).T
        assert ((got.double() - wanted).abs() <= DTYPES[dtype] * (size + wanted.abs()) + 1e-30).all()
        if k > 8:
            assert (got.double() - wanted).norm() <= max(DTYPES[dtype], 3e-5) * wanted.norm()


@pytest.mark.parametrize("code", [0, 15])
@pytest.mark.parametrize("value", [-128, 127])
def test_extreme_codes_do_not_overflow(isa, code, value):
    k = 11008
    p = PreparedWeight(
        *torch.ops.dfq.prepack(torch.full((17, k // 2), code * 17, dtype=torch.uint8), k, 0, True)[:1],
        torch.ones(1, 32, dtype=torch.bfloat16),
        None,
        None,
        0,
        (17, k),
    )
    got = integer(p, torch.full((7, k), value, dtype=torch.int8), torch.ones(7), None)
    assert (got == value * (code - 8) * k).all()


@pytest.mark.parametrize("m", [1, 3, 16, 40])
@pytest.mark.parametrize("group", [0, 64])
def test_any_number_of_threads_gives_the_same_bits(isa, example, threads, m, group):
    if isa == "reference":
        pytest.skip("plain torch promises no such thing")
    p = PreparedWeight.from_packed(example(700, 515, group).weight)
    x, q = rows(m, 515, torch.bfloat16), tokens(m, 515)
    results = []
    for shared in (True, False):
        native.share_threads(shared)
        for count in (1, 2, 3, 4):
            threads(count)
            results.append((p.linear(x), p.linear(x.float()), integer(p, *q)))
    native.share_threads(True)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_has_the_bits_it_has_alone(isa, example, dtype, symmetric):
    """Verifying drafted tokens together must say what decoding them one by one would have said."""
    if isa == "reference":
        pytest.skip("plain torch promises no such thing")
    p = PreparedWeight.from_packed(example(112, 600, 64, symmetric).weight)
    x = rows(16, 600, dtype)
    alone = torch.cat([p.linear(row[None]) for row in x])
    for m in range(1, 17):
        assert torch.equal(p.linear(x[:m]), alone[:m])


def test_views_misaligned_memory_and_no_rows(isa, example):
    w = example(50, 66, 0, False).weight
    p = PreparedWeight.from_packed(w)
    for dtype in DTYPES:
        wide = rows(12, 133, dtype)
        x = wide[:, 1::2]
        assert torch.equal(p.linear(x), p.linear(x.contiguous()))
        assert torch.equal(p.linear(x.unflatten(0, (3, 4))), p.linear(x).unflatten(0, (3, 4)))
        odd = wide.flatten()[1 : 1 + 5 * 66].view(5, 66)
        if isa != "reference":  # torch's own products depend on where their operands lie
            assert torch.equal(p.linear(odd), p.linear(odd.clone()))
        assert p.linear(x[:0]).shape == (0, 50)
        assert p.linear(x[3]).shape == (50,)
    q, x_scale, x_zero = tokens(9, 66)
    wanted = integer(p, q, x_scale, x_zero)
    assert torch.equal(integer(p, q.T.contiguous().T, x_scale, x_zero), wanted)

    def moved(t: torch.Tensor) -> torch.Tensor:
        raw = torch.empty(t.nbytes + 8, dtype=torch.uint8)
        place = raw[t.element_size() : t.element_size() + t.nbytes].view(t.dtype).view(t.shape)
        return place.copy_(t)

    shifted = PreparedWeight(moved(p.tiles), moved(p.scale), moved(p.zero), moved(p.sums), p.group, p.shape)
    assert torch.equal(integer(shifted, moved(q), moved(x_scale), moved(x_zero)), wanted)
    assert integer(p, q[:0], x_scale[:0], x_zero[:0]).shape == (0, 50)
    spread = PreparedWeight(p.tiles, p.scale.T.contiguous().T, p.zero, p.sums, p.group, p.shape)
    assert torch.equal(integer(spread, q, x_scale, x_zero), wanted)


@pytest.mark.parametrize("m", [1, 4, 9, 30])
def test_nothing_is_written_beside_the_output(isa, example, m):
    if isa == "reference":
        pytest.skip("no memory of ours")
    n, k = 37, 83
    p = PreparedWeight.from_packed(example(n, k, 0).weight)
    q, x_scale, x_zero = tokens(m, k)
    for code, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        for integers in (True, False):
            memory = torch.full((m * n + 64,), float("nan"), dtype=dtype)
            out = memory[32 : 32 + m * n]
            operands = {"m": m, "n": n, "k": k, "tiles": p.tiles, "scale": p.scale, "zero": p.zero, "group": 0}
            operands |= {"bias": None, "dtype": code, "out": out}
            if integers:
                bindings.tiled_w4a8(q=q, x_scale=x_scale, x_zero=x_zero, sums=p.sums, **operands)
            else:
                bindings.tiled_w4a16(x=rows(m, k, dtype), **operands)
            assert memory[:32].isnan().all()
            assert memory[32 + m * n :].isnan().all()
            assert out.isfinite().all()
    tiles = torch.full((p.tiles.numel() + 64,), 0xAB, dtype=torch.uint8)
    bindings.prepack(packed=p.to_packed().packed, n=n, k=k, group=0, tiles=tiles[32:], sums=None)
    assert torch.equal(tiles[32:-32], p.tiles.flatten())
    assert (tiles[:32] == 0xAB).all()
    assert (tiles[-32:] == 0xAB).all()
    packed = torch.full((n * 42 + 64,), 0xAB, dtype=torch.uint8)
    bindings.unprepack(tiles=p.tiles, n=n, k=k, packed=packed[32:])
    assert torch.equal(packed[32:-32].view(n, 42), p.to_packed().packed)
    assert (packed[:32] == 0xAB).all()
    assert (packed[-32:] == 0xAB).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_nan_and_infinity_stay_in_their_row(isa, example, symmetric):
    p = PreparedWeight.from_packed(example(40, 70, 0, symmetric).weight)
    for dtype in DTYPES:
        for bad in ("nan", "inf", "-inf"):
            x = rows(9, 70, dtype)
            x[4, 69] = float(bad)
            got = p.linear(x)
            assert not got[4].isfinite().any()
            assert got[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()
    q, x_scale, x_zero = tokens(3, 70)
    x_scale[1] = float("nan")
    got = integer(p, q, x_scale, x_zero)
    assert got[1].isnan().all()
    assert got[[0, 2]].isfinite().all()


def test_two_callers_at_once(example, threads):
    """Scratch memory belongs to a thread: calls from several Python threads must not meet in it."""
    threads(2)
    p = PreparedWeight.from_packed(example(256, 512, 128).weight)
    inputs = [rows(1 + i, 512) for i in range(8)]
    wanted = [p.linear(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(p.linear, inputs), wanted))


@pytest.mark.parametrize("op", [op.name for op in tile16.OPS])
def test_opcheck(isa, example, op):
    w, s = example(9, 70, 32).weight, example(9, 70, 0, True).weight
    p, t = PreparedWeight.from_packed(w), PreparedWeight.from_packed(s, with_sums=False)
    x, (q, x_scale, x_zero), bias = rows(5, 70), tokens(5, 70), torch.ones(9)
    cases = {
        "prepack": [(w.packed, 70, 32, True), (s.packed, 70, 0, False)],
        "unprepack": [(p.tiles, 9, 70)],
        "w4a16_tiled_mm": [
            (x, p.tiles, p.scale, p.zero, bias, 9, 32),
            (x.bfloat16()[None], t.tiles, t.scale, None, None, 9, 0),
        ],
        "w4a8_tiled_mm": [
            (q, x_scale, x_zero, p.tiles, p.scale, p.zero, p.sums, bias, 9, 32, torch.float32),
            (q, x_scale, None, t.tiles, t.scale, None, None, None, 9, 0, torch.bfloat16),
        ],
    }
    for args in cases[op]:
        torch.library.opcheck(getattr(torch.ops.dfq, op).default, args)


def test_wrong_arguments_are_refused_by_name(isa, example):
    p = PreparedWeight.from_packed(example(9, 70, 32).weight)
    x, (q, x_scale, x_zero) = rows(2, 70), tokens(2, 70)
    mm, integers = torch.ops.dfq.w4a16_tiled_mm, torch.ops.dfq.w4a8_tiled_mm
    weight = (p.tiles, p.scale, p.zero)
    refused = [
        (lambda: torch.ops.dfq.prepack(torch.zeros(3, 8, dtype=torch.uint8), 16, 12, True), "group is 12"),
        (lambda: torch.ops.dfq.prepack(torch.zeros(3, 4, dtype=torch.uint8), 9, 0, True), "5 bytes a row"),
        (lambda: torch.ops.dfq.unprepack(p.tiles, 17, 70), r"tiles has shape \(1, 9, 64\), \(2, 9, 64\)"),
        (lambda: mm(x.int(), *weight, None, 9, 32), "x is int32"),
        (lambda: mm(x[:, :60], *weight, None, 9, 32), "tiles has shape"),
        (lambda: mm(x, p.tiles.int(), *weight[1:], None, 9, 32), "tiles is int32"),
        (lambda: mm(x, p.tiles, p.scale[:2], p.zero, None, 9, 32), "scale has shape"),
        (lambda: mm(x, p.tiles, p.scale, p.zero.int(), None, 9, 32), "zero is int32"),
        (lambda: mm(x, *weight, torch.ones(8), 9, 32), r"bias has shape \(8,\)"),
        (lambda: mm(x, *weight, None, 9, -8), "group is -8"),
        (lambda: integers(q, x_scale, x_zero, *weight, None, None, 9, 32, torch.float32), "sums is missing"),
        (lambda: integers(q, x_scale[:1], None, *weight, None, None, 9, 32, torch.float32), "x_scale has shape"),
        (lambda: integers(q, x_scale, None, *weight, None, None, 9, 32, torch.float64), "dtype is torch.float64"),
    ]
    for attempt, message in refused:
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert str(caught.value).startswith("dfq::")


def test_what_has_no_tiles(example):
    three = example(9, 70, 0, bits=3).weight
    assert not PreparedWeight.serves(three)
    with pytest.raises(ValueError, match="3 bits"):
        PreparedWeight.from_packed(three)
    odd = example(9, 70, 12).weight
    assert not PreparedWeight.serves(odd)
    with pytest.raises(ValueError, match="group is 12"):
        PreparedWeight.from_packed(odd)
    assert PreparedWeight.serves(example(9, 70, 75).weight) == native.active()
