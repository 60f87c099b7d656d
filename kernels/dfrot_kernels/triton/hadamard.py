"""`hadamard`: the Kronecker factors of the transform as products with +-1 matrices on tensor cores.

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

from dfrot_kernels import ref
from dfrot_kernels.triton.launch import ceil_div, power2, shared_memory
from dfrot_kernels.triton.rows import dot
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
def _hadamard(
    x, base, out, count, factor,
    ORDER: tl.constexpr, SIZE: tl.constexpr, LEFT: tl.constexpr, ROWS: tl.constexpr, ORDERS: tl.constexpr,
    RIGHT: tl.constexpr,
):  # fmt: skip
    """Blocks [count, ORDER, SIZE] -> out, ROWS of them a program, held as [ROWS, ORDERS, LEFT, RIGHT], which pads."""
    line = tl.arange(0, ROWS * ORDERS * LEFT * RIGHT)
    inside = line % (LEFT * RIGHT)
    order = line // (LEFT * RIGHT) % ORDERS
    row = tl.program_id(0).to(tl.int64) * ROWS + line // (ORDERS * LEFT * RIGHT)
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
    y = tl.reshape(y, (ROWS * ORDERS * LEFT * RIGHT,)) * factor
    tl.store(out + at, y.to(out.dtype.element_ty), mask=held)


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


def _launch(x: Tensor, base: Tensor, out: Tensor, block: int, order: int, factor: float) -> None:
    rows, orders, left, right = shape(block, order)
    count, tile = x.numel() // block, rows * orders * left * right
    _hadamard[(ceil_div(count, rows),)](
        x, base, out, count, factor, order, block // order, left, rows, orders, right,
        num_warps=min(16, max(4, tile // 1024)),
    )  # fmt: skip


def hadamard(x: Tensor, base: Tensor, block: int) -> Tensor:
    order = base.shape[0]
    size, factor = block // order, 1 / math.sqrt(block)
    largest = LARGEST if shared_memory(x.device) >= 160 << 10 else LARGEST // 2
    if x.dtype == torch.float64 or x.numel() == 0 or size > largest:
        return ref.hadamard(x, base, block)  # exact fusing; nothing to do; wider than a program
    x = x.contiguous()
    peer = _peer() if x.is_cuda and order == 1 and 8 <= block <= 32768 else None
    if peer is not None:
        done: Tensor = peer(x.reshape(-1, block), scale=factor)
        return done.reshape(x.shape)
    base = base.to(torch.float32).contiguous()
    if order == 1 or math.prod(shape(block, order)) <= largest // 2:
        out = torch.empty_like(x)
        _launch(x, base, out, block, order, factor)
        return out
    # a base matrix that leaves no room beside the block: its product is PyTorch's
    part = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _launch(x, base, part, size, 1, factor)
    return (base.T @ part.reshape(-1, order, size)).reshape(x.shape).to(x.dtype)
