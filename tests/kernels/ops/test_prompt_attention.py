"""Attention of a prompt over the packed cache, against the reference: dequantize, then softmax in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot_kernels.ops import references as ref

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# relative error of a whole output; with AVX-512 the weights of bfloat16 rows are rounded to bfloat16 as well
TOLERANCE = {F32: 3e-6, BF16: 4e-3, F16: 6e-4}


def empty(capacity: int, batch: int, heads: int, dim: int, bits: int, symmetric: bool) -> tuple[Tensor | None, ...]:
    """Too large and poisoned."""
    rows = (capacity, batch, heads)
    zero = None if symmetric else torch.full(rows, 255, dtype=torch.uint8)
    return torch.full((*rows, (dim * bits + 7) // 8), 255, dtype=torch.uint8), torch.full(rows, torch.nan).half(), zero


def build(
    batch=1, kv_heads=2, group=2, rows=130, length=200, dim=32, v_dim=None, bits=4, symmetric=False, dtype=F32,
    window=0, sinks=0,
) -> tuple[object, ...]:  # fmt: skip
    """Arguments of an op: random keys with outlier channels, appended in two pieces."""
    g = torch.Generator().manual_seed(length * 31 + dim + bits)
    v_dim = v_dim or dim
    key, value = (torch.randn(batch, length, kv_heads, d, generator=g).to(dtype) for d in (dim, v_dim))
    key[..., 0] *= 6
    query = torch.randn(batch, rows, kv_heads * group, dim, generator=g).to(dtype)
    stores = empty(length + 3, batch, kv_heads, dim, bits, symmetric)
    stores += empty(length + 3, batch, kv_heads, v_dim, bits, symmetric)
    for begin, end in ((0, length // 3), (length // 3, length)):
        torch.ops.dfq.kv_append(key[:, begin:end], value[:, begin:end], *stores, begin, bits, 0.95, None, 0)
    exact = (
        [torch.randn(sinks, batch, kv_heads, d, generator=g).to(dtype) for d in (dim, v_dim)] if sinks else [None] * 2
    )
    return (query, *stores, length, v_dim, bits, dim**-0.5, window, *exact)


def check(args: tuple[object, ...]) -> Tensor:
    got, wanted = torch.ops.dfq.prompt_attention(*args), ref.prompt_attention(*args)
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert got.isfinite().all()
    assert (got.double() - wanted.double()).norm() <= TOLERANCE[got.dtype] * wanted.double().norm()
    return got


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, False), (4, True), (8, False)])
def test_every_width(isa, dtype, bits, symmetric):
    check(build(bits=bits, symmetric=symmetric, dtype=dtype))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("dim", "v_dim"), [(1, 1), (7, 24), (64, 64), (80, 128), (128, 5), (512, 512)])
def test_every_head_size(isa, dtype, dim, v_dim):
    check(build(dim=dim, v_dim=v_dim, dtype=dtype, rows=40, length=140))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("rows", "length", "batch", "kv_heads", "group"),
    [
        (1, 1, 1, 1, 1),
        (1, 129, 2, 3, 5),
        (3, 127, 1, 1, 200),
        (128, 128, 1, 2, 1),
        (129, 300, 2, 3, 5),
        (70, 513, 1, 1, 7),
    ],
)
def test_rows_and_heads(isa, dtype, rows, length, batch, kv_heads, group):
    check(build(batch, kv_heads, group, rows, length, dim=16, dtype=dtype))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("window", [1, 5, 128, 130, 10_000])
@pytest.mark.parametrize("sinks", [0, 4, 131])
def test_windows_and_sinks(isa, dtype, window, sinks):
    check(build(rows=150, length=310, dtype=dtype, window=window, sinks=sinks))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_row_has_the_bits_that_it_has_in_any_call(isa, threads, dtype):
    """Whatever is computed beside it: chunks of a prompt, one row, other threads."""
    args = build(rows=290, length=300, dtype=dtype, window=170, sinks=3, group=3)
    query, stores, length, rest = args[0], args[1:7], args[7], args[8:]
    threads(3)
    whole = torch.ops.dfq.prompt_attention(*args)
    threads(1)
    for begin, end in ((0, 77), (77, 78), (78, 290)):
        part = torch.ops.dfq.prompt_attention(query[:, begin:end], *stores, length - 290 + end, *rest)
        assert torch.equal(part, whole[:, begin:end])


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("place", ["key", "value", "sink"])
def test_nan_reaches_the_rows_that_see_it(isa, dtype, place):
    args = list(build(rows=60, length=140, dtype=dtype, window=20, sinks=85, batch=2))
    at = 84 if place == "sink" else 100
    if place == "sink":
        args[12] = args[12].clone()
        args[12][at, 1, 0, 3] = torch.nan
    else:
        args[2 if place == "key" else 5][at, 1, 0] = torch.nan  # the scale of a row that held it
    got = torch.ops.dfq.prompt_attention(*args)
    reached = got.isnan().all(-1)
    assert torch.equal(reached, got.isnan().any(-1))
    position = torch.arange(80, 140)
    seen = (position >= at) & (position < at + 20)
    assert torch.equal(reached[1, :, :2], seen[:, None].expand(-1, 2))
    assert not reached[0].any()
    assert not reached[1, :, 2:].any()


def test_large_scores_do_not_overflow(isa):
    args = list(build(dtype=BF16))
    args[0] = args[0] * 300
    check(tuple(args))


def test_what_it_refuses():
    args = list(build(rows=5, length=9))

    def refused(change: dict[int, object], match: str) -> None:
        with pytest.raises(ValueError, match=f"dfq::prompt_attention: .*{match}"):
            torch.ops.dfq.prompt_attention(*[change.get(i, value) for i, value in enumerate(args)])

    refused({7: 4}, "5 query positions at length 4")
    refused({10 + 1: -1}, "window is -1")
    refused({8: 513}, "heads of 32 and 513 values")
    refused({0: torch.zeros(1, 5, 3, 32)}, "3 query heads are no multiple of 2")
    refused({12: torch.zeros(2, 1, 2, 32)}, "one of k_sink and v_sink is missing")
    refused({12: torch.zeros(2, 1, 2, 32).half(), 13: torch.zeros(2, 1, 2, 32)}, "k_sink is float16")


def test_opcheck(isa):
    torch.library.opcheck(torch.ops.dfq.prompt_attention.default, build(rows=20, length=30, sinks=2))
