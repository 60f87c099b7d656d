"""`hadamard`, `hadamard_quantize`: Kronecker factors of the transform as products with +-1 matrices on tensor cores.

A Sylvester matrix of size 2^p is the Kronecker product of two smaller ones, so a block is multiplied as a matrix from
either side; the base matrix (sizes that are no power of two) comes third. Factors are exact in bfloat16; values are
taken as two bfloat16 terms, which leaves a relative error of 2^-17. fast-hadamard-transform serves what it can where
it is installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfrot_kernels.ops.hadamard import reference
from dfrot_kernels.ops.quantize.triton import quantize_per_token, tokens
from dfrot_kernels.triton.launch import EXACT, ceil_div, power2, shared_memory
from dfrot_kernels.triton.rows import dot, quantized
from dfrot_kernels.triton.weights import low_part

PEER = "fast_hadamard_transform"
LARGEST = 32768  # values that one program holds: registers and shared memory allow no more
_SINGLE = 7  # blocks up to 2^7 are multiplied at once


@triton.jit
def sylvester(SIZE: tl.constexpr):
    """The Sylvester-Hadamard matrix of a power of two, bfloat16 [SIZE, SIZE]: the parity of the common bits of i, j."""
    at = tl.arange(0, SIZE)
    bits = at[:, None] & at[None, :]
    bits ^= bits >> 8
    bits ^= bits >> 4
    bits ^= bits >> 2
    bits ^= bits >> 1
    return (1 - 2 * (bits & 1)).to(tl.float32).to(tl.bfloat16)


@triton.jit
def multiply(x, h):
    """float32 rows [R, K] times a +-1 matrix bfloat16 [K, J] -> float32 [R, J]."""
    high = x.to(tl.bfloat16)
    acc = tl.zeros((x.shape[0], h.shape[1]), tl.float32)
    return dot(low_part(x, high), h, dot(high, h, acc))


@triton.jit
def transform(
    x, base, first, count,
    ORDER: tl.constexpr, SIZE: tl.constexpr, LEFT: tl.constexpr, ROWS: tl.constexpr, ORDERS: tl.constexpr,
    RIGHT: tl.constexpr,
):  # fmt: skip
    """ROWS blocks of [count, ORDER, SIZE] from `first` on, times +-1: float32 [ROWS, WIDTH], where they lie in x, and
    which exist. WIDTH = ORDERS * LEFT * RIGHT pads a block."""
    WIDTH: tl.constexpr = ORDERS * LEFT * RIGHT
    line = tl.arange(0, WIDTH)[None, :]
    inside, order = line % (LEFT * RIGHT), line // (LEFT * RIGHT)
    row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    held = (row < count) & (order < ORDER) & (inside < SIZE)
    at = row * (ORDER * SIZE) + order * SIZE + inside
    y = tl.load(x + at, mask=held, other=0.0).to(tl.float32)
    y = multiply(tl.reshape(y, (ROWS * ORDERS * LEFT, RIGHT)), sylvester(RIGHT))
    if LEFT > 1:
        y = tl.trans(tl.reshape(y, (ROWS * ORDERS, LEFT, RIGHT)), (0, 2, 1))
        y = multiply(tl.reshape(y, (ROWS * ORDERS * RIGHT, LEFT)), sylvester(LEFT))
        y = tl.trans(tl.reshape(y, (ROWS * ORDERS, RIGHT, LEFT)), (0, 2, 1))
    if ORDER > 1:
        k = tl.arange(0, ORDERS)
        mask = (k < ORDER)[:, None] & (k < ORDER)[None, :]
        matrix = tl.load(base + k[:, None] * ORDER + k[None, :], mask=mask, other=0.0)
        y = tl.trans(tl.reshape(y, (ROWS, ORDERS, LEFT * RIGHT)), (0, 2, 1))
        y = tl.dot(tl.reshape(y, (ROWS * LEFT * RIGHT, ORDERS)), matrix, input_precision="tf32x3")
        y = tl.trans(tl.reshape(y, (ROWS, LEFT * RIGHT, ORDERS)), (0, 2, 1))
    return tl.reshape(y, (ROWS, WIDTH)), at, held


@triton.jit
def _hadamard(
    x, base, out, count, root,
    ORDER: tl.constexpr, SIZE: tl.constexpr, LEFT: tl.constexpr, ROWS: tl.constexpr, ORDERS: tl.constexpr,
    RIGHT: tl.constexpr,
):  # fmt: skip
    """Blocks [count, ORDER, SIZE] -> out of the same shape, ROWS of them a program."""
    y, at, held = transform(x, base, tl.program_id(0) * ROWS, count, ORDER, SIZE, LEFT, ROWS, ORDERS, RIGHT)
    tl.store(out + at, tl.div_rn(y, root + tl.zeros_like(y)).to(out.dtype.element_ty), mask=held)


@triton.jit
def _hadamard_quantize(
    x, base, codes, scales, zeros, count, root, clip,
    ORDER: tl.constexpr, SIZE: tl.constexpr, LEFT: tl.constexpr, ROWS: tl.constexpr, ORDERS: tl.constexpr,
    RIGHT: tl.constexpr, HALF: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """The same where a row is one block, and its int8 codes: the transformed row never leaves the registers."""
    first = tl.program_id(0) * ROWS
    y, at, held = transform(x, base, first, count, ORDER, SIZE, LEFT, ROWS, ORDERS, RIGHT)
    y = tl.where(held, tl.div_rn(y, root + tl.zeros_like(y)), 0.0)
    q, scale, zero = quantized(y, clip, HALF, SYMMETRIC)
    tl.store(codes + at, q.to(tl.int8), mask=held)
    row = first + tl.arange(0, ROWS)
    tl.store(scales + row, scale, mask=row < count)
    tl.store(zeros + row, zero.to(tl.int32), mask=row < count)


def shape(block: int, order: int) -> tuple[int, int, int, int]:
    """How a program holds blocks: (ROWS, ORDERS, LEFT, RIGHT) of `_hadamard`."""
    size = block // order
    exponent = size.bit_length() - 1
    left = 1 if exponent <= _SINGLE else 1 << (exponent // 2)
    right = max(16, size // left)  # no product on tensor cores is narrower
    orders = 1 if order == 1 else max(16, power2(order))
    return max(1, 4096 // (orders * left * right)), orders, left, right


@functools.cache
def _peer() -> Callable[..., Any] | None:
    """fast-hadamard-transform, where installed."""
    if importlib.util.find_spec(PEER) is None:
        return None
    function: Callable[..., Any] = importlib.import_module(PEER).hadamard_transform
    return function


def _launch(kernel: Any, x: Tensor, base: Tensor, out: tuple[Tensor, ...], block: int, order: int, *rest: Any) -> None:
    rows, orders, left, right = shape(block, order)
    count, tile = x.numel() // block, rows * orders * left * right
    sizes = (order, block // order, left, rows, orders, right)
    warps = min(16, max(4, tile // 1024))
    kernel[(ceil_div(count, rows),)](x, base, *out, count, *rest[:2], *sizes, *rest[2:], num_warps=warps, **EXACT)


def _largest(device: torch.device) -> int:
    return LARGEST if shared_memory(device) >= 160 << 10 else LARGEST // 2


def _whole(block: int, order: int, device: torch.device) -> bool:
    """Whether one program holds a block, and the base matrix beside it."""
    return math.prod(shape(block, order)) <= (_largest(device) if order == 1 else _largest(device) // 2)


def transformed(x: Tensor, base: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    """`hadamard` with the result in `dtype`."""
    order = base.shape[0]
    size, root = block // order, math.sqrt(block)
    if x.dtype == torch.float64 or x.numel() == 0 or size > _largest(x.device):
        wide = x if x.dtype == torch.float64 else x.float()
        return reference.hadamard(wide, base, block).to(dtype)  # exact fusing; nothing to do; wider than a program
    x = x.contiguous()
    peer = _peer() if x.is_cuda and order == 1 and 8 <= block <= 32768 else None
    if peer is not None:
        done: Tensor = peer(x.to(dtype).reshape(-1, block), scale=1 / root)
        return done.reshape(x.shape)
    base = base.to(torch.float32).contiguous()
    if _whole(block, order, x.device):
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        _launch(_hadamard, x, base, (out,), block, order, root)
        return out
    # a base matrix that leaves no room beside the block: its product is PyTorch's
    part = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _launch(_hadamard, x, base, (part,), size, 1, 1.0)
    return (base.T @ part.reshape(-1, order, size)).div_(root).reshape(x.shape).to(dtype)


def hadamard(x: Tensor, base: Tensor, block: int) -> Tensor:
    """`hadamard` of reference.py."""
    return transformed(x, base, block, x.dtype)


def hadamard_quantize(
    x: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`hadamard_quantize` of reference.py; one kernel where a row is one block that a program holds."""
    if base is None:
        return quantize_per_token(x, bits, symmetric, clip)
    order = base.shape[0]
    if block != x.shape[1] or x.numel() == 0 or not _whole(block, order, x.device):
        return quantize_per_token(transformed(x, base, block, torch.float32), bits, symmetric, clip)
    out = tokens(x)
    half = 1 << (bits - 1)
    base, root = base.to(torch.float32).contiguous(), math.sqrt(block)
    _launch(_hadamard_quantize, x.contiguous(), base, out, block, order, root, clip, half, symmetric)
    return out
