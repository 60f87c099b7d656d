"""Argument checks shared by every implementation: one sentence naming op, argument, what came, what is needed.

They run on every call, so a sentence is put together only when it is needed.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def fail(op: str, message: str) -> NoReturn:
    """Raises ValueError: `dfq::OP: MESSAGE`."""
    raise ValueError(f"dfq::{op}: {message}")


def bits_ok(op: str, bits: int) -> None:
    """Codes have 2 to 8 bits."""
    if not 2 <= bits <= 8:
        fail(op, f"bits is {bits}, 2..8 is needed")


def clip_ok(op: str, clip: float) -> None:
    """0 < clip <= 1."""
    if not 0 < clip <= 1:
        fail(op, f"clip is {clip}, more than 0 and at most 1 is needed")


def row_bytes(op: str, packed: Tensor, width: int, bits: int) -> None:
    """The last dimension of `packed` must hold `width` codes."""
    needed = (width * bits + 7) // 8
    if packed.dim() < 1 or packed.shape[-1] != needed:
        fail(op, f"packed has shape {tuple(packed.shape)}, {needed} bytes a row are needed for {width} codes")


def matrix(op: str, name: str, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """x must have two dimensions and one of `dtypes`."""
    if x.dim() != 2:
        fail(op, f"{name} has shape {tuple(x.shape)}, a matrix is needed")
    dtype(op, name, x, dtypes)


def dtype(op: str, name: str, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """x must have one of `dtypes`."""
    if x.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        fail(op, f"{name} is {str(x.dtype).removeprefix('torch.')}, {names} is needed")


def shape(op: str, name: str, x: Tensor, needed: tuple[int, ...]) -> None:
    """x must have shape `needed`."""
    if tuple(x.shape) != needed:
        fail(op, f"{name} has shape {tuple(x.shape)}, {needed} is needed")


def weight(op: str, k: int, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int, bits: int = 4) -> None:
    """packed uint8 [N, ceil(K bits / 8)], scale bfloat16 [N, G], zero uint8 [N, G] or None."""
    matrix(op, "packed", packed, (torch.uint8,))
    if group < 0:
        fail(op, f"group is {group}, 0 (per channel) or a positive size is needed")
    row_bytes(op, packed, k, bits)
    groups = -(-k // group) if group else 1
    for name, tensor, kind in (("scale", scale, torch.bfloat16), ("zero", zero, torch.uint8)):
        if tensor is not None:
            dtype(op, name, tensor, (kind,))
            shape(op, name, tensor, (packed.shape[0], groups))


def tokens(op: str, q: Tensor, x_scale: Tensor, x_zero: Tensor) -> None:
    """Quantized rows: q int8 [M, K], x_scale float32 [M], x_zero int32 [M]."""
    matrix(op, "q", q, (torch.int8,))
    for name, tensor, kind in (("x_scale", x_scale, torch.float32), ("x_zero", x_zero, torch.int32)):
        dtype(op, name, tensor, (kind,))
        shape(op, name, tensor, (q.shape[0],))


def blocks(op: str, x: Tensor, base: Tensor, block: int) -> None:
    """x must be floats whose last dimension is whole blocks, base [order, order] with block = order * 2^p."""
    if x.dim() < 1 or not x.is_floating_point():
        fail(op, f"x is {x.dtype} {tuple(x.shape)}, a float tensor is needed")
    order = base.shape[0] if base.dim() == 2 else 0
    if base.dim() != 2 or base.shape[1] != order or order == 0:
        fail(op, f"base has shape {tuple(base.shape)}, a square is needed")
    size = block // order if block > 0 and block % order == 0 else 0
    if size == 0 or size & (size - 1):
        fail(op, f"block {block} is not base order {order} times a power of two")
    if x.shape[-1] % block:
        fail(op, f"block {block} does not divide the last dimension {x.shape[-1]}")
