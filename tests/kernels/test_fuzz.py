"""Every native op on shapes, types, memory layouts and thread counts drawn at random, against its definition.

A seed that fails is repeated with -k. A few seeds run always, more of them under -m slow."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.ops import references as ref
from dfrot_kernels.prepared import PreparedWeight

FEW, MANY = 5, 150
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= FEW else []) for seed in range(MANY)]
# relative error of a float product, by the type of its rows
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-3, torch.float16: 6e-4}


class Draw:
    """Random arguments. Tensors come in layouts that a caller may have: views, odd addresses, transposes."""

    def __init__(self, seed: int) -> None:
        self.choice, self.size = random.Random(seed).choice, random.Random(seed + 1).randint
        self.torch = torch.Generator().manual_seed(seed)

    def view(self, x: Tensor) -> Tensor:
        way = self.size(0, 3)
        if way == 0:
            return x.contiguous()
        if way == 1:  # behind one element of the same storage: aligned to nothing
            flat = torch.empty(x.numel() + 1, dtype=x.dtype)
            flat[1:] = x.reshape(-1)
            return flat[1:].view(x.shape)
        if way == 2:
            wide = torch.empty(*x.shape[:-1], x.shape[-1] + self.size(1, 9), dtype=x.dtype)
            wide[..., : x.shape[-1]] = x
            return wide[..., : x.shape[-1]]
        return x.transpose(0, -1).contiguous().transpose(0, -1)

    def floats(self, *shape: int) -> Tensor:
        dtype = self.choice(list(TOLERANCE))
        largest = 1 if dtype == torch.float16 else 3  # whose products end at 65504
        x = torch.randn(*shape, generator=self.torch) * 10.0 ** self.size(-3, largest)
        return self.view(x.to(dtype))

    def bytes(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return self.view(torch.randint(low, high + 1, shape, generator=self.torch, dtype=dtype))

    def codes(self) -> tuple[int, bool, float]:
        """bits, symmetric, clip"""
        return self.size(2, 8), self.choice([True, False]), self.choice([1.0, 0.9, 0.5])

    def weight(self, bits: int, n: int, k: int, group: int) -> PackedWeight:
        groups = -(-k // group) if group else 1
        signs = torch.randint(0, 2, (n, groups), generator=self.torch) * 2 - 1
        scale = ((torch.rand(n, groups, generator=self.torch) + 0.1) * signs).bfloat16()
        zero = self.choice([None, torch.randint(0, 2**bits, (n, groups), generator=self.torch, dtype=torch.uint8)])
        return PackedWeight.from_codes(self.bytes(0, 2**bits - 1, n, k), scale, zero, bits, group)


def exact(op: str, reference: Callable[..., Any], *args: Any) -> None:
    found, wanted = getattr(torch.ops.dfq, op)(*args), reference(*args)
    for a, b in zip(*((x,) if isinstance(x, Tensor) else x for x in (found, wanted)), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), (op, [tuple(x.shape) if isinstance(x, Tensor) else x for x in args])


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == wanted.shape
    assert (found.double() - wanted.double()).norm() <= TOLERANCE[dtype] * wanted.double().norm() + 1e-30


def rows_of(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).double()


def integers(draw: Draw, m: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    q = draw.bytes(-128, 127, m, k, dtype=torch.int8)
    return q, draw.view(torch.rand(m, generator=draw.torch)), draw.bytes(-128, 127, m, dtype=torch.int32)


@pytest.mark.parametrize("seed", SEEDS)
def test_codes(isa, threads, seed):
    draw = Draw(seed)
    threads(draw.size(1, 4))
    x, (bits, symmetric, clip) = draw.floats(draw.size(0, 40), draw.size(1, 300)), draw.codes()
    exact("quantize_per_token", ref.quantize_per_token, x, bits, symmetric, clip)
    exact("kv_quantize", ref.kv_quantize, x, bits, symmetric, clip)
    packed, scale, zero = torch.ops.dfq.kv_quantize(x, bits, symmetric, clip)
    exact("kv_dequantize", ref.kv_dequantize, packed, scale, zero, x.shape[-1], bits, torch.float32)
    codes = draw.bytes(0, 2**bits - 1, draw.size(1, 40), draw.size(1, 200))
    exact("pack", ref.pack, codes, bits)
    assert torch.equal(torch.ops.dfq.unpack(draw.view(torch.ops.dfq.pack(codes, bits)), bits, codes.shape[1]), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows(isa, threads, paley, seed):
    """Transforms in another order of sums move few codes, by one; norms and gates are rounded at the same places."""
    draw = Draw(seed)
    threads(draw.size(1, 4))
    base = draw.choice([torch.ones(1, 1), paley(3), paley(11), paley(19)])
    block = base.shape[0] * 2 ** draw.size(0, 8)
    x, codes = draw.floats(draw.size(1, 20), block * draw.size(1, 3)), draw.codes()
    found = torch.ops.dfq.hadamard_quantize(x, base, block, *codes)
    turned = torch.ops.dfq.hadamard(x.float(), base, block)
    for a, b in zip(found, ref.quantize_per_token(turned, *codes), strict=True):
        assert torch.equal(a, b), (tuple(x.shape), block, codes)
    close(turned, ref.hadamard(x.float(), base, block), torch.float32)
    weight = draw.choice([None, torch.rand(x.shape[1], generator=draw.torch).to(x.dtype)])
    residual = [None, None] if draw.size(0, 1) else [x.contiguous().clone() for _ in range(2)]
    options = (weight, 1e-5, *codes)
    one = torch.ops.dfq.rmsnorm_quantize(x, residual[0], *options)
    other = ref.rmsnorm_quantize(x, residual[1], *options)
    assert torch.allclose(one[1], other[1], rtol=2e-2)
    moved = (one[0].int() - one[2][:, None]) - (other[0].int() - other[2][:, None])
    assert int(moved.abs().max()) <= 2
    if residual[0] is not None:
        assert torch.equal(residual[0], residual[1])


@pytest.mark.parametrize("seed", SEEDS)
def test_products(isa, threads, seed):
    draw = Draw(seed)
    threads(draw.size(1, 4))
    m, n, k = draw.size(0, 40), draw.size(1, 90), draw.size(1, 400)
    w = draw.weight(4, n, k, draw.choice([0, draw.size(1, k)]))
    q, x_scale, x_zero = integers(draw, m, k)
    stored = (w.packed, w.scale, w.zero, w.group)
    exact("dequantize", ref.dequantize, w.packed, w.scale, w.zero, 4, k, w.group)
    exact("w4a8_mm", ref.w4a8_mm, q, x_scale, x_zero, *stored)
    x = draw.floats(m, k)
    close(torch.ops.dfq.w4a16_mm(x, *stored), rows_of(x) @ w.dequantize().double().T, x.dtype)
    b = draw.weight(8, n, k, draw.choice([0, 16, 48, 16 * draw.size(1, 30)]))
    found = torch.ops.dfq.w8a16_mm(x, draw.view(b.packed), draw.view(b.scale), b.group)
    symmetric = PackedWeight(b.packed, b.scale, None, 8, b.group, b.shape)
    close(found, rows_of(x) @ symmetric.dequantize().double().T, x.dtype)
    tiled = draw.weight(4, n, k, draw.choice([0, 8, 32, 64, 8 * draw.size(1, 50)]))
    ready = PreparedWeight.from_packed(tiled)
    assert torch.equal(ready.to_packed().packed, tiled.packed)
    bias = draw.choice([None, torch.randn(n, generator=draw.torch)])
    found = ready.integer_linear(q, x_scale, x_zero, bias, torch.float32)
    parts = (ready.tiles, ready.scale, ready.zero, ready.sums, bias, n, ready.group, torch.float32)
    assert torch.equal(found, ref.w4a8_tiled_mm(q, x_scale, x_zero, *parts)), (m, n, k, ready.group)
    close(ready.linear(x), rows_of(x) @ tiled.dequantize().double().T, x.dtype)


@pytest.mark.parametrize("seed", SEEDS)
def test_cache(isa, threads, seed):
    draw = Draw(seed)
    threads(draw.size(1, 4))
    batch, heads, share, rows = draw.size(1, 3), draw.size(1, 3), draw.size(1, 4), draw.size(1, 20)
    length, k_dim, v_dim = rows + draw.size(0, 200), draw.size(1, 100), draw.size(1, 100)
    bits, symmetric, clip = draw.codes()
    stores: list[Tensor | None] = []
    for dim in (k_dim, v_dim):
        packed = torch.full((length, batch, heads, (dim * bits + 7) // 8), 255, dtype=torch.uint8)
        zero = None if symmetric else torch.full((length, batch, heads), 255, dtype=torch.uint8)
        stores += [packed, torch.full((length, batch, heads), torch.nan).half(), zero]
    kind = draw.choice(list(TOLERANCE))
    for begin, end in ((0, length - rows), (length - rows, length)):
        new = [torch.randn(batch, end - begin, heads, dim, generator=draw.torch).to(kind) for dim in (k_dim, v_dim)]
        torch.ops.dfq.kv_append(draw.view(new[0]), draw.view(new[1]), *stores, begin, bits, clip, None, 0)
        for x, store in zip(new, (stores[:3], stores[3:])):
            wanted = ref.kv_quantize(x.transpose(0, 1), bits, symmetric, clip)
            for part, one in zip(store, wanted):
                assert part is None or torch.equal(part[begin:end].view(one.shape), one)
    query = draw.view(torch.randn(batch, rows, heads * share, k_dim, generator=draw.torch).to(kind))
    tree = (torch.rand(batch, rows, rows, generator=draw.torch) < 0.5) | torch.eye(rows, dtype=torch.bool)
    first = torch.randint(0, length - rows + 1, (batch, rows), generator=draw.torch)
    seen = (draw.choice([None, first]), draw.choice([None, tree]), None, None, None)
    args = (query, *stores, length, v_dim, bits, k_dim**-0.5, None, 0, *seen)
    close(torch.ops.dfq.kv_attention(*args), ref.kv_attention(*args), kind)
