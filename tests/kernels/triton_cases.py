"""Small cases for the Triton kernels, and a script that runs them under Triton's interpreter on CPU tensors.

`TRITON_INTERPRET=1 python triton_cases.py` prints one JSON line per case: its name, and what went wrong ("" for
nothing). test_triton.py runs it, and runs the same cases on a GPU where there is one.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot_kernels import cuda, ops
from dfrot_kernels.ops import references as ref

EXACT, CLOSE = 0.0, 1e-3
TERMS = 3e-5  # float32 as two bfloat16 terms: 2^-17 for each product


@dataclass(frozen=True)
class Case:
    """An op on arguments; `limit`: largest error over the largest magnitude of each result, 0 means equal."""

    op: str
    label: str
    args: tuple[Any, ...]
    limit: float = EXACT
    outputs: tuple[int, ...] = ()  # arguments that the op writes, for ops that return nothing

    @property
    def name(self) -> str:
        return f"{self.op}-{self.label}"


def seeded(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum((31**i) * part for i, part in enumerate(key, 1)))


def rows_of_all_kinds(m: int, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random rows; one of zeros, one with NaN, one with Inf, one of a single sign where there is room."""
    x = torch.randn(m, k, generator=seeded(m, k)) * 3
    if m > 4:
        x[1] = 0.0
        x[2, k // 2] = torch.nan
        x[3, 0] = -torch.inf
        x[4] = x[4].abs() + 1
    return x.to(dtype)


def quantize_cases() -> Iterator[Case]:
    for k in (1, 70, 256):
        for bits, symmetric, clip in ((4, True, 1.0), (4, False, 0.9), (8, False, 1.0), (2, True, 0.5)):
            yield Case(
                "quantize_per_token", f"{k}-{bits}-{symmetric}", (rows_of_all_kinds(6, k), bits, symmetric, clip)
            )
    for dtype in (torch.bfloat16, torch.float16):
        yield Case("quantize_per_token", str(dtype), (rows_of_all_kinds(6, 96, dtype), 4, False, 1.0))
    yield Case("quantize_per_token", "no rows", (torch.zeros(0, 8), 4, False, 1.0))
    wide = rows_of_all_kinds(5, 16384 + 40)
    yield Case("quantize_per_token", "wider than a block", (wide, 4, False, 1.0))
    strided = rows_of_all_kinds(6, 128)[:, ::2]
    yield Case("quantize_per_token", "strided", (strided, 4, False, 1.0))


def weight(n: int, k: int, group: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Packed codes, scales, zero points (of the whole range of a byte) and the group, as the products take them."""
    g = seeded(n, k, group)
    groups = -(-k // group) if group else 1
    codes = torch.randint(0, 16, (n, k), generator=g, dtype=torch.uint8)
    signs = torch.randint(0, 2, (n, groups), generator=g) * 2 - 1
    scale = ((torch.rand(n, groups, generator=g) * 0.1 + 0.01) * signs).to(torch.bfloat16)
    zero = None if symmetric else torch.randint(0, 256, (n, groups), generator=g, dtype=torch.uint8)
    return ref.pack(codes, 4), scale, zero, group


# rows, outputs, columns, group, symmetric: one tile and several, tails everywhere, groups of every kind
PRODUCTS = (
    (1, 16, 64, 0, True),
    (3, 40, 70, 0, False),
    (1, 9, 2100, 0, False),
    (8, 70, 256, 32, False),
    (5, 33, 384, 64, True),
    (16, 65, 300, 128, False),
    (2, 20, 71, 7, False),
    (4, 24, 200, 24, True),
    (6, 10, 20, 64, False),
    (2, 5, 1, 0, False),
    (17, 40, 70, 0, False),
    (70, 130, 192, 64, False),
    (33, 20, 90, 6, True),
)


def w4a16_cases() -> Iterator[Case]:
    for i, (m, *shape) in enumerate(PRODUCTS):
        dtype = (torch.float32, torch.bfloat16, torch.float16)[i % 3]
        x = torch.randn(m, shape[1], generator=seeded(m, i)).to(dtype)
        limit = TERMS if dtype == torch.float32 else 2.0**-7 if dtype == torch.bfloat16 else CLOSE  # the result's own
        yield Case("w4a16_mm", f"{m} {shape} {dtype}", (x, *weight(*shape)), limit)
    x = torch.randn(2, 3, 64, generator=seeded(3))
    yield Case("w4a16_mm", "three dimensions", (x, *weight(8, 64, 0, False)), TERMS)
    x = torch.randn(4, 128, generator=seeded(4))[:, ::2]
    yield Case("w4a16_mm", "strided", (x, *weight(8, 64, 32, False)), TERMS)
    bad = torch.ones(3, 64)
    bad[1, 5] = torch.nan
    yield Case("w4a16_mm", "NaN stays in its row", (bad, *weight(8, 64, 32, True)), TERMS)
    yield Case("w4a16_mm", "no rows", (torch.zeros(0, 64), *weight(8, 64, 32, True)))


def integer_cases() -> Iterator[Case]:
    for m, *shape in PRODUCTS:
        g = seeded(m, *shape)
        q = torch.randint(-128, 128, (m, shape[1]), generator=g, dtype=torch.int8)
        x_zero = torch.randint(-128, 128, (m,), generator=g, dtype=torch.int32)
        x_scale = torch.rand(m, generator=g) + 0.1
        # one scale per row: exact however K is split; groups: the order of float32 sums differs
        limit = EXACT if shape[2] == 0 or shape[2] >= shape[1] else 1e-6
        yield Case("w4a8_mm", f"{m} {shape}", (q, x_scale, x_zero, *weight(*shape)), limit)
    few = torch.randint(-8, 8, (20, 96), generator=seeded(1), dtype=torch.int8)
    scale, shift = torch.ones(20), torch.randint(-8, 8, (20,), generator=seeded(2), dtype=torch.int32)
    yield Case("w4a4_mm", "four bits", (few, scale, shift, *weight(24, 96, 32, False)), EXACT)
    yield Case("w4a8_mm", "no rows", (few[:0], scale[:0], shift[:0], *weight(24, 96, 32, False)))


def hadamard_base(order: int) -> Tensor:
    """A square of order 1 or 12 (Paley), or random signs: the op takes any."""
    if order == 1:
        return torch.ones(1, 1)
    return torch.randint(0, 2, (order, order), generator=seeded(order)).float() * 2 - 1


def hadamard_cases() -> Iterator[Case]:
    for order, block, width in (
        (1, 1, 5), (1, 2, 6), (1, 16, 48), (1, 128, 128), (1, 256, 512), (1, 1024, 1024), (1, 8192, 8192),
        (12, 12, 24), (12, 48, 48), (20, 20 * 128, 20 * 128), (28, 28 * 256, 28 * 256),
        (40, 40 * 512, 40 * 512), (1, 65536, 65536),
    ):  # fmt: skip
        x = torch.randn(3, width, generator=seeded(width))
        yield Case("hadamard", f"{order} {block}", (x, hadamard_base(order), block), TERMS)
    x = torch.randn(2, 3, 70, 64, generator=seeded(1))
    one = hadamard_base(1)
    yield Case("hadamard", "four dimensions", (x, one, 64), TERMS)
    yield Case("hadamard", "bfloat16", (x.bfloat16(), one, 64), 2.0**-7)
    yield Case("hadamard", "float16", (x.half(), one, 64), CLOSE)
    yield Case("hadamard", "float64", (x.double(), one, 64), EXACT)
    yield Case("hadamard", "strided", (x.transpose(1, 2)[..., ::2], one, 32), TERMS)
    bad = torch.ones(40, 64)
    bad[7, 3], bad[9, 1] = torch.nan, torch.inf
    yield Case("hadamard", "NaN stays in its block", (bad, one, 64), TERMS)


def hadamard_quantize_cases() -> Iterator[Case]:
    """On small integers of few values the transform is exact, and so are its codes."""
    for order, block, width in ((1, 64, 64), (1, 512, 512), (12, 48, 48), (1, 32, 96), (40, 40 * 512, 40 * 512)):
        x = torch.randint(-4, 5, (6, width), generator=seeded(width)).float() * 2.0
        x[1] = 0.0
        x[2, 3], x[3, 4] = torch.nan, torch.inf
        for bits, symmetric in ((4, True), (8, False)):
            args = (x.bfloat16(), hadamard_base(order), block, bits, symmetric, 0.9)
            yield Case("hadamard_quantize", f"{order} {block} {width} {bits}", args, EXACT)
    x = rows_of_all_kinds(6, 96)
    yield Case("hadamard_quantize", "no transform", (x, None, 0, 4, False, 1.0))


def kv_cases() -> Iterator[Case]:
    for bits in range(2, 9):
        for dim in (1, 20, 64):
            for symmetric in (True, False):
                x = rows_of_all_kinds(7, dim, torch.bfloat16).reshape(7, 1, dim)
                yield Case("kv_quantize", f"{bits} {dim} {symmetric}", (x, bits, symmetric, 0.9))
        stored = ref.kv_quantize(rows_of_all_kinds(7, 21), bits, False, 1.0)
        yield Case("kv_dequantize", f"{bits}", (*stored, 21, bits, torch.float32))
    yield Case("kv_dequantize", "symmetric", (stored[0], stored[1], None, 21, 8, torch.float16))
    huge = torch.tensor([[1e30, -1e30, 3.0, 0.0], [1e-30, 0.0, 0.0, -1e-30]])
    yield Case("kv_quantize", "scales beyond float16", (huge, 4, False, 1.0))
    yield Case("kv_quantize", "no rows", (torch.zeros(0, 3, 8), 4, False, 1.0))


def kv_store(positions: int, batch: int, heads: int, dim: int, bits: int, zero: bool) -> tuple[Tensor | None, ...]:
    """Buffers of a cache, filled with a pattern that must survive where nothing is written."""
    lead = (positions, batch, heads)
    codes = torch.full((*lead, (dim * bits + 7) // 8), 0xA5, dtype=torch.uint8)
    return codes, torch.full(lead, 7.0).half(), torch.full(lead, 3, dtype=torch.uint8) if zero else None


def kv_append_cases() -> Iterator[Case]:
    """Keys are small integers, so that R3 is exact and so are its codes."""
    for bits, block, order, dims, zero in (
        (4, 64, 1, (64, 64), True), (4, 16, 1, (32, 20), False), (8, 32, 1, (32, 32), True), (3, 32, 1, (32, 8), True),
        (4, 24, 12, (24, 24), True), (4, 8, 1, (40, 40), True), (5, 0, 0, (24, 24), False),
        (4, 256, 1, (256, 64), True),
    ):  # fmt: skip
        batch, seq, heads = 2, 3, 2
        key = torch.randint(-4, 5, (batch, seq, heads, dims[0]), generator=seeded(*dims)).to(torch.bfloat16)
        value = torch.randn(batch, seq, heads, dims[1], generator=seeded(*dims)).to(torch.bfloat16)
        stores = (*kv_store(7, batch, heads, dims[0], bits, zero), *kv_store(7, batch, heads, dims[1], bits, zero))
        base = hadamard_base(order) if order else None
        args = (key.transpose(1, 2).contiguous().transpose(1, 2), value, *stores, 2, bits, 1.0, base, block)
        shift = torch.randint(-9, 10, (heads, dims[0]), generator=seeded(*dims)).float()
        for more in ((), (shift,)):
            label = f"{bits} {block} {order} {dims}" + (" shift" if more else "")
            yield Case("kv_append", label, (*args, *more), EXACT, tuple(range(2, 8)))


def attention_case(
    label: str, batch: int, seq: int, heads: tuple[int, int], length: int, dims: tuple[int, int], bits: int = 4, *,
    symmetric: bool = False, dtype: torch.dtype = torch.float32, block: int = 0, first: Tensor | None = None,
    tree: Tensor | None = None, sinks: int = 0, start: Tensor | None = None, bad: bool = False,
) -> Case:  # fmt: skip
    g = seeded(batch, seq, length, *dims)
    parts: list[Any] = []
    for dim in dims:
        rows = torch.randn(length + 2, batch, heads[1], dim, generator=g)
        if bad:
            rows[length // 2, 0, 0, 0] = torch.nan
        packed, scale, zero = ref.kv_quantize(rows, bits, symmetric, 1.0)
        parts += [packed, scale, None if symmetric else zero]
    query = torch.randn(batch, seq, heads[0], dims[0], generator=g).to(dtype)
    exact = [torch.randn(sinks, batch, heads[1], dim, generator=g).to(dtype) if sinks else None for dim in dims]
    if bad and sinks:
        exact[1][0, 0, 0, 0] = torch.inf
    base = hadamard_base(1) if block else None
    args = (query, *parts, length, dims[1], bits, dims[0] ** -0.5, base, block, first, tree, *exact, start)
    return Case("kv_attention", label, args, 1e-4 if dtype == torch.float32 else 2.0**-7)


def attention_cases() -> Iterator[Case]:
    yield attention_case("one row", 1, 1, (4, 4), 37, (16, 16))
    yield attention_case("gqa, batch, several splits", 2, 3, (8, 2), 700, (32, 20), block=32)
    yield attention_case("symmetric bfloat16", 2, 2, (2, 2), 150, (64, 64), symmetric=True, dtype=torch.bfloat16)
    yield attention_case("float16, odd heads", 1, 5, (3, 1), 33, (20, 24), dtype=torch.float16)
    yield attention_case("three bits", 1, 2, (2, 1), 40, (21, 9), 3)
    yield attention_case("eight bits", 1, 2, (2, 1), 40, (16, 24), 8, symmetric=True)
    yield attention_case("many rows", 1, 64, (4, 2), 200, (16, 16))
    yield attention_case("wide heads", 1, 2, (2, 2), 140, (256, 256), block=64)
    tree = torch.rand(6, 6, generator=seeded(6)) < 0.5
    yield attention_case("tree", 2, 6, (4, 2), 140, (16, 16), tree=tree)
    trees = torch.rand(2, 6, 6, generator=seeded(7)) < 0.5
    trees[1, 2] = False  # with `first` at the end, this row sees nothing
    first = torch.randint(0, 134, (2, 6), generator=seeded(8))
    first[1, 2] = 500
    yield attention_case("trees and windows", 2, 6, (4, 2), 140, (16, 16), tree=trees, first=first)
    late = torch.full((1, 2), 600)
    yield attention_case("window in the last split", 1, 2, (2, 2), 700, (16, 16), first=late)
    yield attention_case("sinks", 2, 2, (4, 2), 300, (32, 20), sinks=4)
    start = torch.tensor([-2, 5])
    yield attention_case("sinks that begin elsewhere", 2, 2, (4, 2), 300, (32, 32), sinks=4, start=start, block=32)
    yield attention_case("fewer positions than sinks", 1, 1, (2, 1), 2, (16, 16), sinks=4)
    blind = torch.tensor([[0, 200], [0, 200]])
    yield attention_case("NaN reaches who sees it", 2, 2, (4, 2), 300, (16, 16), bad=True, first=blind)
    yield attention_case("infinite sink", 2, 2, (4, 2), 300, (16, 16), bad=True, first=blind, sinks=2)


BUILDERS = (
    quantize_cases,
    w4a16_cases,
    integer_cases,
    hadamard_cases,
    hadamard_quantize_cases,
    kv_cases,
    kv_append_cases,
    attention_cases,
)


def cases() -> list[Case]:
    return [case for build in BUILDERS for case in build()]


def _copied(args: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """Tensors on `device`; what an op writes must not be shared between the two runs."""
    return tuple(arg.to(device, copy=True) if isinstance(arg, Tensor) else arg for arg in args)


def _results(case: Case, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    found = function(*args)
    if case.outputs:
        return [args[i] for i in case.outputs if args[i] is not None]
    return list(found) if isinstance(found, (tuple, list)) else [found]


def fault(case: Case, function: Callable[..., Any], device: str = "cpu") -> str:
    """What is wrong with `function` on `device` beside the reference of the op; "" for nothing."""
    wanted = _results(case, ops.OPS[case.op].reference, _copied(case.args, "cpu"))
    got = [tensor.cpu() for tensor in _results(case, function, _copied(case.args, device))]
    for index, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"result {index} is {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}"
        difference = (a.double() - b.double()).abs()
        difference[(a == b) | (a.isnan() & b.isnan())] = 0.0
        finite = b.double()[b.double().isfinite()].abs()
        error = float(difference.amax()) / max(float(finite.amax()), 1e-30) if finite.numel() else 0.0
        if not error <= case.limit:
            where = [int(i) for i in torch.unravel_index(difference.nan_to_num(torch.inf).argmax(), a.shape)]
            return f"result {index} is off by {error:.3g} of its magnitude, worst at {where}"
    return ""


def main() -> None:

    torch.use_deterministic_algorithms(True)  # torch.empty is NaN: nothing may be left unwritten
    for case in cases():
        try:
            wrong = fault(case, cuda.kernels()[case.op])
        except Exception:
            wrong = traceback.format_exc()
        sys.stdout.write(json.dumps([case.name, wrong]) + "\n")


if __name__ == "__main__":
    main()
