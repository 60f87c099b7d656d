"""Fused row ops against the single steps: the same bits where the arithmetic is the same, else a bounded step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot_kernels import native
from dfrot_kernels.ops import references as ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ONE = torch.ones(1, 1)
CASES = [(4, False, 1.0), (4, True, 0.9), (8, True, 1.0), (8, False, 0.97), (3, False, 1.0), (4, False, 0.1)]


def rows(m: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(seed + 31 * m + k))
    if k > 2:
        x[:, 1] *= 30
    return x.to(dtype)


def same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(("codes", "scale", "zero"), got, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), name


def near(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], wide: float) -> None:
    """Dequantized values within half a step and `wide` of the row's range of the exact ones, scales alike."""
    assert torch.allclose(got[1], wanted[1], rtol=wide)
    for codes, scale, zero in (got, wanted):
        assert codes.dtype == torch.int8
        assert scale.isfinite().all()
        assert zero.dtype == torch.int32
    moved = (got[0].int() - got[2][:, None]) - (wanted[0].int() - wanted[2][:, None])
    assert int(moved.abs().max()) <= 1
    assert float(moved.ne(0).float().mean()) < 0.02


# --- hadamard + quantize ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two(isa, block, dtype):
    x = rows(3, 2 * block if block < 4096 else block, dtype)
    turned = torch.ops.dfq.hadamard(x.float(), ONE, block)
    for case in CASES[:3]:
        got = torch.ops.dfq.hadamard_quantize(x, ONE, block, *case)
        same(got, torch.ops.dfq.quantize_per_token(turned, *case))
        same(got, ref.quantize_per_token(turned, *case))


@pytest.mark.parametrize("order", [4, 12, 20, 44, 108])
@pytest.mark.parametrize("power", [1, 2, 8, 16, 64, 512])
def test_bases(isa, paley, order, power):
    base, block = paley(order - 1), order * power
    x = rows(2, block * (2 if power < 512 else 1), torch.bfloat16)
    for side in (base, base.T.contiguous()):
        turned = torch.ops.dfq.hadamard(x.float(), side, block)
        assert (turned.double() - ref.hadamard(x.double(), side, block)).norm() < 1e-6 * turned.double().norm()
        got = torch.ops.dfq.hadamard_quantize(x, side, block, 4, False, 1.0)
        same(got, ref.quantize_per_token(turned, 4, False, 1.0))


@pytest.mark.parametrize("base", [torch.randn(3, 3), torch.ones(2, 2) - 2 * torch.eye(2), torch.randn(8, 8)])
def test_bases_that_are_not_signs(isa, base):
    x = rows(3, base.shape[0] * 32)
    turned = torch.ops.dfq.hadamard(x, base, base.shape[0] * 16)
    wanted = ref.hadamard(x.double(), base, base.shape[0] * 16)
    assert (turned.double() - wanted).norm() < 1e-6 * wanted.norm()
    got = torch.ops.dfq.hadamard_quantize(x, base, base.shape[0] * 16, 8, True, 1.0)
    same(got, ref.quantize_per_token(turned, 8, True, 1.0))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 15, 16, 17, 63, 64, 65, 129, 1000, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_transform_it_is_quantize_per_token(isa, case, k, dtype):
    x = rows(3, k, dtype)
    got = torch.ops.dfq.hadamard_quantize(x, None, 0, *case)
    same(got, torch.ops.dfq.quantize_per_token(x, *case))
    same(got, ref.quantize_per_token(x, *case))


@pytest.mark.parametrize("bits", range(2, 9))
def test_ties_and_extremes_round_as_divided(isa, bits):
    """Quotients in the middle of two codes, subnormal and huge scales, zeros, tiny clips: no code may differ."""
    top = 2 ** (bits - 1) - 1
    steps = torch.arange(-2 * top, 2 * top + 1).float() / 2  # k + 1/2 for every k
    grid = torch.cat([steps, steps.nextafter(torch.tensor(9e9)), steps.nextafter(torch.tensor(-9e9))])
    grid = torch.cat([grid, torch.zeros(256 - len(grid) % 256)])
    scales = torch.tensor([1.0, 3.0, 0.1, 1e-3, 2.0**-130, 1e-38, 1e-42, 1e30, 1 / 3])
    x = torch.cat([grid[None] * scales[:, None], torch.zeros(1, len(grid))])
    for symmetric in (True, False):
        for clip in (1.0, 0.5, 1e-3, 1e-8):
            got = torch.ops.dfq.hadamard_quantize(x, None, 0, bits, symmetric, clip)
            same(got, ref.quantize_per_token(x, bits, symmetric, clip))


def test_bad_rows_are_marked_and_alone(isa):
    x = rows(6, 256)
    good = torch.ops.dfq.hadamard_quantize(x, ONE, 256, 4, False, 1.0)
    x[1, 7], x[3, 0], x[4, 255] = torch.nan, torch.inf, -torch.inf
    got = torch.ops.dfq.hadamard_quantize(x, ONE, 256, 4, False, 1.0)
    assert got[1].isnan().tolist() == [False, True, False, True, True, False]
    assert int(got[0][[1, 3, 4]].abs().max()) == 0
    for part, before in zip(got, good, strict=True):
        assert torch.equal(part[[0, 2, 5]], before[[0, 2, 5]])


# --- norm and gate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 64, 100, 513, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_norm(isa, k, dtype, weighted, residual):
    x, old = rows(3, k, dtype), rows(3, k, dtype, seed=9) if residual else None
    weight = rows(1, k, dtype, seed=5)[0] if weighted else None
    sums = [None if old is None else old.clone() for _ in range(2)]
    got = torch.ops.dfq.rmsnorm_quantize(x, sums[0], weight, 1e-5, 8, False, 1.0)
    near(got, ref.rmsnorm_quantize(x, sums[1], weight, 1e-5, 8, False, 1.0), 1e-5 if dtype == DTYPES[0] else 0.01)
    if residual:
        assert torch.equal(sums[0], old + x)
        assert torch.equal(sums[0], sums[1])


@pytest.mark.parametrize("k", [1, 12, 48, 160, 768, 1500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(isa, paley, k, dtype):
    gate, up = rows(4, k, dtype), rows(4, k, dtype, seed=3)
    gate[0] *= 40  # far into both tails
    base, block = (paley(11), 12) if k % 12 == 0 else (None, 0)
    got = torch.ops.dfq.silu_mul_hadamard_quantize(gate, up, base, block, 8, True, 1.0)
    wanted = ref.silu_mul_hadamard_quantize(gate, up, base, block, 8, True, 1.0)
    near(got, wanted, 1e-5 if dtype == DTYPES[0] else 0.01)


def test_nan_in_norm_and_gate_marks_the_row(isa):
    x = rows(4, 96)
    x[2, 5] = torch.nan
    assert torch.ops.dfq.rmsnorm_quantize(x, None, None, 1e-6, 4, False, 1.0)[1].isnan().tolist() == [0, 0, 1, 0]
    for pair in ((x, rows(4, 96)), (rows(4, 96), x)):
        got = torch.ops.dfq.silu_mul_hadamard_quantize(*pair, None, 0, 4, False, 1.0)
        assert got[1].isnan().tolist() == [0, 0, 1, 0]


# --- for all of them ----------------------------------------------------------------------------------------------


def calls(m: int, k: int) -> list[tuple[str, tuple[object, ...]]]:
    x, tail = rows(m, k, torch.bfloat16), (4, False, 1.0)
    return [
        ("hadamard_quantize", (x, ONE, k, *tail)),
        ("rmsnorm_quantize", (x, None, x[0].clone(), 1e-6, *tail)),
        ("silu_mul_hadamard_quantize", (x, x * 2, ONE, k, *tail)),
    ]


def test_same_bits_for_every_number_of_threads_and_instruction_set(threads):
    before = native.isa() if native.active() else None
    for name, args in calls(40, 4096):
        results = []
        for isa in native.available_isas() or [None]:
            if isa:
                native.set_isa(isa)
            for count in (1, 2, 3, 4):
                threads(count)
                results.append(getattr(torch.ops.dfq, name)(*args))
        for result in results[1:]:
            same(result, results[0])
    if before:
        native.set_isa(before)


def test_views_misaligned_and_no_rows(isa):
    for name, args in calls(6, 64):
        op = getattr(torch.ops.dfq, name)
        wanted = op(*args)
        is_rows = [isinstance(arg, Tensor) and arg.shape == args[0].shape for arg in args]
        twice = [torch.stack((arg, arg), -1)[..., 0] if here else arg for arg, here in zip(args, is_rows)]
        assert not twice[0].is_contiguous()
        same(op(*twice), wanted)
        moved = torch.zeros(args[0].numel() + 1, dtype=torch.bfloat16)[1:].view_as(args[0]).copy_(args[0])
        same(op(moved, *args[1:]), wanted)
        none = [arg[:0] if here else arg for arg, here in zip(args, is_rows)]
        assert [part.shape[0] for part in op(*none)] == [0, 0, 0]


REFUSED = [
    ("hadamard_quantize", (torch.zeros(3), None, 0, 4, True, 1.0), "x has shape"),
    ("hadamard_quantize", (torch.zeros(2, 12), ONE, 8, 4, True, 1.0), "block 8 does not divide"),
    ("hadamard_quantize", (torch.zeros(2, 8), ONE, 8, 9, True, 1.0), "bits is 9"),
    ("hadamard_quantize", (torch.zeros(2, 8), ONE, 8, 4, True, 1.5), "clip is 1.5"),
    ("hadamard_quantize", (torch.zeros(2, 8, dtype=torch.int8), ONE, 8, 4, True, 1.0), "x is int8"),
    ("rmsnorm_quantize", (torch.zeros(2, 8), torch.zeros(2, 7), None, 0.0, 4, True, 1.0), "residual has shape"),
    ("rmsnorm_quantize", (torch.zeros(2, 8), torch.zeros(8, 2).T, None, 0.0, 4, True, 1.0), "residual is not contig"),
    ("rmsnorm_quantize", (torch.zeros(2, 8), None, torch.zeros(8).half(), 0.0, 4, True, 1.0), "weight is float16"),
    ("rmsnorm_quantize", (torch.zeros(2, 8), None, None, -1.0, 4, True, 1.0), "epsilon is -1"),
    ("silu_mul_hadamard_quantize", (torch.zeros(2, 8), torch.zeros(2, 4), None, 0, 4, True, 1.0), "up has shape"),
]


@pytest.mark.parametrize(("op", "args", "message"), REFUSED)
def test_wrong_arguments_are_refused_by_name(op, args, message):
    with pytest.raises(ValueError, match=message) as caught:
        getattr(torch.ops.dfq, op)(*args)
    assert str(caught.value).startswith(f"dfq::{op}: ")
