"""Argument checks shared by every implementation: one sentence naming op, argument, what came, what is needed."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def need(condition: bool, op: str, message: str) -> None:
    if not condition:
        raise ValueError(f"dfq::{op}: {message}")


def bits_ok(op: str, bits: int) -> None:
    need(2 <= bits <= 8, op, f"bits is {bits}, 2..8 is needed")


def matrix(op: str, name: str, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    need(x.dim() == 2, op, f"{name} has shape {tuple(x.shape)}, a matrix is needed")
    dtype(op, name, x, dtypes)


def dtype(op: str, name: str, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
    need(x.dtype in dtypes, op, f"{name} is {str(x.dtype).removeprefix('torch.')}, {wanted} is needed")


def weight(op: str, k: int, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int, bits: int = 4) -> None:
    """packed uint8 [N, ceil(K bits / 8)], scale bfloat16 [N, G], zero uint8 [N, G] or None."""
    matrix(op, "packed", packed, (torch.uint8,))
    need(group >= 0, op, f"group is {group}, 0 (per channel) or a positive size is needed")
    width, groups = (k * bits + 7) // 8, -(-k // group) if group else 1
    need(packed.shape[1] == width, op, f"packed has {packed.shape[1]} bytes a row, {width} are needed for K = {k}")
    for name, tensor, kind in (("scale", scale, torch.bfloat16), ("zero", zero, torch.uint8)):
        if tensor is not None:
            matrix(op, name, tensor, (kind,))
            shape = (packed.shape[0], groups)
            need(tuple(tensor.shape) == shape, op, f"{name} has shape {tuple(tensor.shape)}, {shape} is needed")


def tokens(op: str, q: Tensor, x_scale: Tensor, x_zero: Tensor) -> None:
    matrix(op, "q", q, (torch.int8,))
    for name, tensor, kind in (("x_scale", x_scale, torch.float32), ("x_zero", x_zero, torch.int32)):
        dtype(op, name, tensor, (kind,))
        need(
            tuple(tensor.shape) == (q.shape[0],), op, f"{name} has shape {tuple(tensor.shape)}, needs one per row of q"
        )


def blocks(op: str, x: Tensor, base: Tensor, block: int) -> None:
    need(x.dim() >= 1 and x.is_floating_point(), op, f"x is {x.dtype} {tuple(x.shape)}, a float tensor is needed")
    order = base.shape[0] if base.dim() == 2 else 0
    need(base.dim() == 2 and base.shape[1] == order > 0, op, f"base has shape {tuple(base.shape)}, a square is needed")
    size = block // order if block > 0 and block % order == 0 else 0
    need(size > 0 and size & (size - 1) == 0, op, f"block {block} is not base order {order} times a power of two")
    need(x.shape[-1] % block == 0, op, f"block {block} does not divide the last dimension {x.shape[-1]}")
