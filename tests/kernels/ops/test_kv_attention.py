"""Append to and attention on the packed cache, against the reference: dequantize, then softmax in float32."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dfrot_kernels import native
from dfrot_kernels.ops import references as ref

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# relative error of a whole output: float sums in another order; one rounding to the output's dtype
TOLERANCE = {F32: 1e-5, BF16: 3e-3, F16: 6e-4}


@dataclass
class Cache:
    """A filled cache and the queries that read it."""

    stores: tuple[Tensor | None, ...]
    length: int
    bits: int
    query: Tensor
    v_dim: int
    base: Tensor | None

    def args(self, first=None, tree=None, sinks=(None, None, None), rows=None) -> tuple[object, ...]:
        query = self.query if rows is None else rows
        block = query.shape[-1] if self.base is not None else 0
        scaling = query.shape[-1] ** -0.5
        where = (self.length, self.v_dim, self.bits, scaling, self.base, block)
        return (query, *self.stores, *where, first, tree, *sinks)


def empty(capacity, batch, heads, dim, bits, symmetric) -> tuple[Tensor | None, ...]:
    rows = (capacity, batch, heads)
    zero = None if symmetric else torch.full(rows, 255, dtype=torch.uint8)
    return torch.full((*rows, (dim * bits + 7) // 8), 255, dtype=torch.uint8), torch.full(rows, torch.nan).half(), zero


def sylvester(order: int) -> Tensor:
    h = torch.ones(1, 1)
    while h.shape[0] < order:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)), 0)
    return h


def build(
    batch=1, kv_heads=2, group=2, rows=1, length=70, dim=32, v_dim=None, bits=4, symmetric=False, dtype=F32, r3=False
) -> Cache:
    """Random keys with outlier channels, appended in two pieces behind each other into too large buffers."""
    g = torch.Generator().manual_seed(length * 31 + dim + bits)
    v_dim = v_dim or dim
    key = torch.randn(batch, length, kv_heads, dim, generator=g).to(dtype)
    value = torch.randn(batch, length, kv_heads, v_dim, generator=g).to(dtype)
    key[..., 0] *= 6
    query = torch.randn(batch, rows, kv_heads * group, dim, generator=g).to(dtype)
    stores = (*empty(length + 3, batch, kv_heads, dim, bits, symmetric),)
    stores += empty(length + 3, batch, kv_heads, v_dim, bits, symmetric)
    base = torch.ones(1, 1) if r3 else None
    cut = length // 3
    for begin, end in ((0, cut), (cut, length)):
        new = key[:, begin:end], value[:, begin:end]
        torch.ops.dfq.kv_append(*new, *stores, begin, bits, 0.95, base, dim if r3 else 0)
    return Cache(stores, length, bits, query, v_dim, base)


def close(got: Tensor, wanted: Tensor) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert got.isfinite().all()
    assert (got.double() - wanted.double()).norm() <= TOLERANCE[got.dtype] * wanted.double().norm()


def check(args: tuple[object, ...]) -> Tensor:
    got = torch.ops.dfq.kv_attention(*args)
    close(got, ref.kv_attention(*args))
    return got


# --- append -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, False), (4, True), (8, False)])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(("dim", "v_dim", "order"), [(64, 64, 1), (24, 40, 12), (7, 1, 0)])
def test_append_writes_what_the_single_steps_write(isa, paley, bits, symmetric, dtype, dim, v_dim, order):
    g = torch.Generator().manual_seed(dim)
    key, value = (torch.randn(2, 5, 3, d, generator=g).to(dtype) for d in (dim, v_dim))
    base = paley(order - 1) if order > 1 else torch.ones(1, 1) if order else None
    stores = empty(9, 2, 3, dim, bits, symmetric) + empty(9, 2, 3, v_dim, bits, symmetric)
    before = [None if part is None else part.clone() for part in stores]
    torch.ops.dfq.kv_append(key, value, *stores, 3, bits, 0.9, base, dim)
    rotated = key if base is None else torch.ops.dfq.hadamard(key.float(), base, dim)
    for x, store, old in ((rotated, stores[:3], before[:3]), (value, stores[3:], before[3:])):
        wanted = torch.ops.dfq.kv_quantize(x.transpose(0, 1), bits, symmetric, 0.9)
        for part, new, untouched in zip(store, wanted, old, strict=True):
            if part is None:
                continue
            assert torch.equal(part[3:8], new)
            for rest in (slice(0, 3), slice(8, 9)):
                assert torch.equal(part[rest].nan_to_num(), untouched[rest].nan_to_num())


@pytest.mark.parametrize(("bits", "symmetric"), [(3, False), (4, True), (4, False)])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("dim", "order"), [(64, 1), (24, 12), (7, 0)])
def test_append_shifts_keys_behind_r3(isa, paley, bits, symmetric, dtype, dim, order):
    g = torch.Generator().manual_seed(dim)
    key, value = (torch.randn(2, 5, 3, dim, generator=g).to(dtype) for _ in range(2))
    shift = torch.randn(2, 3, dim, generator=g).transpose(0, 1)[:, 0] * 5  # [heads, D], not contiguous
    base = paley(order - 1) if order > 1 else torch.ones(1, 1) if order else None
    stores, plain = (empty(5, 2, 3, dim, bits, symmetric) + empty(5, 2, 3, dim, bits, symmetric) for _ in range(2))
    torch.ops.dfq.kv_append(key, value, *stores, 0, bits, 0.9, base, dim if order else 0, shift)
    rotated = key.float() if base is None else torch.ops.dfq.hadamard(key.float(), base, dim)
    torch.ops.dfq.kv_append(rotated - shift, value.float(), *plain, 0, bits, 0.9, None, 0)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(stores, plain, strict=True))


def test_append_takes_views_and_no_positions(isa):
    x = torch.randn(2, 3, 6, 16, generator=torch.Generator().manual_seed(0))
    key, value = x.transpose(1, 2), x.transpose(1, 2) * 2  # [B, S, H, D] as attention modules have them
    assert not key.is_contiguous()
    stores = [empty(6, 2, 3, 16, 4, False) + empty(6, 2, 3, 16, 4, False) for _ in range(2)]
    torch.ops.dfq.kv_append(key, value, *stores[0], 0, 4, 1.0, None, 0)
    torch.ops.dfq.kv_append(key.contiguous(), value.contiguous(), *stores[1], 0, 4, 1.0, None, 0)
    torch.ops.dfq.kv_append(key[:, :0], value[:, :0], *stores[1], 6, 4, 1.0, None, 0)
    assert all(torch.equal(a, b) for a, b in zip(*stores, strict=True))


# --- attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_width(isa, dtype, bits, symmetric):
    check(build(bits=bits, symmetric=symmetric, dtype=dtype).args())


@pytest.mark.parametrize("dim", [1, 7, 8, 24, 64, 80, 96, 128, 256, 512])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_head_size(isa, dim, bits):
    check(build(dim=dim, bits=bits, v_dim=max(1, dim - 5)).args())
    check(build(dim=dim, bits=bits, rows=3, dtype=BF16).args())


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 127, 128, 129, 511, 512, 513, 1100])
@pytest.mark.parametrize("group", [1, 3, 4])
def test_every_length(isa, length, group):
    check(build(length=length, group=group, rows=min(length, 2), batch=2).args())


@pytest.mark.parametrize("rows", [1, 4, 5, 33, 64])
def test_new_positions_see_each_other_up_to_themselves(isa, rows):
    cache = build(length=200, rows=rows)
    got = check(cache.args())
    causal = torch.ones(rows, rows, dtype=torch.bool).tril()
    assert torch.equal(got, torch.ops.dfq.kv_attention(*cache.args(tree=causal)))
    # every row alone, on the positions up to its own
    for row in {0, rows // 2, rows - 1}:
        args = list(cache.args(rows=cache.query[:, row : row + 1]))
        args[7] = 200 - rows + row + 1
        close(torch.ops.dfq.kv_attention(*args), got[:, row : row + 1])


@pytest.mark.parametrize("rows", [2, 9, 64])
def test_trees_paddings_and_windows(isa, rows):
    cache = build(batch=3, length=300, rows=rows)
    g = torch.Generator().manual_seed(rows)
    tree = (torch.rand(3, rows, rows, generator=g) < 0.4) | torch.eye(rows, dtype=torch.bool)
    first = torch.randint(0, 300 - rows + 1, (3, rows), generator=g)
    got = check(cache.args(first, tree))
    shared = check(cache.args(None, tree[0]))
    assert torch.equal(shared, torch.ops.dfq.kv_attention(*cache.args(None, tree[:1].expand(3, -1, -1))))
    # what is not seen does not matter: other codes there, the same bits here
    codes, scale = cache.stores[0].clone(), cache.stores[1].clone()
    hidden = int(first[1].min())
    codes[:hidden, 1] = 0
    scale[:hidden, 1] = torch.nan
    cache.stores = (codes, scale, *cache.stores[2:])
    assert hidden > 0
    assert torch.equal(torch.ops.dfq.kv_attention(*cache.args(first, tree)), got)


@pytest.mark.parametrize("starts", [None, [0, 7, 150], [199, 200, 5]])
@pytest.mark.parametrize("count", [1, 4, 130])
def test_exact_sinks(isa, starts, count):
    cache = build(batch=3, length=200, rows=5)
    g = torch.Generator().manual_seed(count)
    k, v = (torch.randn(count, 3, 2, 32, generator=g) for _ in range(2))
    start = None if starts is None else torch.tensor(starts)
    first = torch.zeros(3, 5, dtype=torch.int64) if start is None else start.clamp(max=195)[:, None].expand(3, 5)
    check(cache.args(first.contiguous(), None, (k, v, start)))
    tree = (torch.rand(5, 5, generator=g) < 0.5) | torch.eye(5, dtype=torch.bool)
    check(cache.args(None, tree, (k, v, start)))


def test_queries_are_rotated_like_the_keys(isa):
    plain, turned = build(dim=64, bits=8), build(dim=64, bits=8, r3=True)
    got = check(turned.args())
    h = sylvester(64) / 8
    by_hand = turned.args(rows=turned.query @ h)
    assert torch.allclose(got, torch.ops.dfq.kv_attention(*by_hand[:11], None, 0, *by_hand[13:]), atol=1e-4)
    unturned = torch.ops.dfq.kv_attention(*plain.args())
    assert (got - unturned).norm() < 0.1 * unturned.norm(), "the rotation cancels in the scores"


def test_large_scores_and_a_row_that_sees_nothing(isa):
    cache = build(rows=2)
    cache.query *= 300  # one position takes all the weight
    check(cache.args())
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    nothing[1, 0] = True
    got = check(cache.args(torch.full((1, 2), 68), nothing))
    assert torch.equal(got[:, 0], torch.zeros_like(got[:, 0]))
    assert got[:, 1].abs().sum() > 0


@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_reaches_who_sees_it_and_no_other(isa, where, value):
    cache = build(batch=2, rows=3, length=140)
    if where == "query":
        cache.query[1, 1, 2, 3] = value
        args = cache.args()
        bad = torch.zeros(2, 3, 4, dtype=torch.bool)
        bad[1, 1, 2] = True
    else:
        scale = cache.stores[1 if where == "key" else 4]
        scale[138, 0, 1] = torch.nan  # what appending a row with NaN or Inf writes
        args = cache.args()
        bad = torch.zeros(2, 3, 4, dtype=torch.bool)
        bad[0, 1:, 2:] = True
    got = torch.ops.dfq.kv_attention(*args)
    assert torch.equal(got.isnan().all(-1), bad)
    assert torch.equal(got.isnan().any(-1), bad)
    assert torch.equal(ref.kv_attention(*args).isnan().any(-1), bad)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_same_bits_for_every_number_of_threads_and_instruction_set(threads, dtype):
    cache = build(batch=2, kv_heads=3, group=4, rows=3, length=1200, dim=64, dtype=dtype)
    results = []
    before = native.isa() if native.active() else None
    for name in native.available_isas() or [None]:
        if name:
            native.set_isa(name)
        for count in (1, 2, 3, 4):
            threads(count)
            results.append(torch.ops.dfq.kv_attention(*cache.args()))
    if before:
        native.set_isa(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_views_misaligned_and_empty(isa):
    cache = build(rows=4, length=50, dtype=F32)
    wanted = torch.ops.dfq.kv_attention(*cache.args())
    view = cache.query.transpose(1, 2).contiguous().transpose(1, 2)
    assert not view.is_contiguous()
    assert torch.equal(torch.ops.dfq.kv_attention(*cache.args(rows=view)), wanted)
    flat = torch.zeros(cache.query.numel() + 1)[1:].view_as(cache.query).copy_(cache.query)
    codes = torch.zeros(cache.stores[0].numel() + 3, dtype=torch.uint8)[3:].view_as(cache.stores[0])
    cache.stores = (codes.copy_(cache.stores[0]), *cache.stores[1:])
    assert torch.equal(torch.ops.dfq.kv_attention(*cache.args(rows=flat)), wanted)
    none = build(batch=0, length=3)
    assert torch.ops.dfq.kv_attention(*none.args()).shape == (0, 1, 4, 32)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_opcheck(isa):
    for case in (build(rows=2), build(symmetric=True, r3=True, dtype=BF16)):
        torch.library.opcheck(torch.ops.dfq.kv_attention.default, case.args())
    stores = empty(4, 1, 2, 16, 4, False) + empty(4, 1, 2, 16, 4, False)
    stores = tuple(torch.zeros_like(part) for part in stores)
    new = torch.randn(1, 2, 2, 16)
    for shift in (None, torch.randn(2, 16)):
        append = (new, new, *stores, 1, 4, 1.0, torch.ones(1, 1), 16, shift)
        torch.library.opcheck(torch.ops.dfq.kv_append.default, append)


REFUSED = [
    (0, torch.zeros(1, 2, 4), "query has shape"),
    (0, torch.zeros(1, 65, 4, 32), "65 query positions at length 70, 1 to 64"),
    (0, torch.zeros(1, 1, 3, 32), "3 query heads are no multiple of 2"),
    (1, torch.zeros(70, 1, 2, 15, dtype=torch.uint8), "16 bytes a row are needed"),
    (1, torch.zeros(69, 1, 2, 16, dtype=torch.uint8), "70 or more positions"),
    (2, torch.zeros(73, 1, 2), "k_scale is float32, float16"),
    (6, torch.zeros(73, 1, 1, dtype=torch.uint8), "v_zero has shape"),
    (7, 0, "1 query positions at length 0"),
    (8, 513, "512 are needed"),
    (9, 9, "bits is 9"),
    (11, torch.ones(2, 3), "a square is needed"),
    (13, torch.zeros(1, 2, dtype=torch.int64), "first has shape"),
    (13, torch.zeros(1, 1, dtype=torch.int32), "first is int32"),
    (14, torch.ones(1, 1), "tree is float32, bool"),
    (14, torch.ones(2, 1, 1, dtype=torch.bool), "tree has shape"),
    (15, torch.zeros(1, 1, 2, 32), "both or none"),
]


@pytest.mark.parametrize(("index", "value", "message"), REFUSED)
def test_wrong_arguments_are_refused_by_name(index, value, message):
    args = list(build().args())
    args[index] = value
    with pytest.raises(ValueError, match=message) as caught:
        torch.ops.dfq.kv_attention(*args)
    assert str(caught.value).startswith("dfq::kv_attention: ")


def test_append_refuses_buffers_that_do_not_fit():
    new, stores = torch.zeros(1, 2, 2, 16), empty(4, 1, 2, 16, 4, False) + empty(4, 1, 2, 16, 4, False)
    tail = (4, 1.0, None, 0)
    for arguments, message in (
        ((new, new, *stores, 3, *tail), "5 or more positions"),
        ((new, new, *stores, -1, *tail), "position is -1"),
        ((new, new[:, :1], *stores, 0, *tail), "value has shape"),
        ((new, new, *stores[:2], None, *stores[3:], 0, *tail), "both .asymmetric. or none"),
        ((new[:, :, :1], new[:, :, :1], *stores, 0, *tail), "2 heads, key has 1"),
        ((new, new, stores[0][:, :, :, ::2], *stores[1:], 0, *tail), "8 bytes a row are needed"),
        ((new, new, *(torch.stack((part, part), -1)[..., 0] for part in stores), 0, *tail), "contiguous"),
        ((new, new, *stores, 0, *tail, torch.zeros(16)), "shift has shape"),
        ((new, new, *stores, 0, *tail, torch.zeros(2, 16).half()), "shift is float16"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.dfq.kv_append(*arguments)
