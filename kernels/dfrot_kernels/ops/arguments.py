"""Tensors as kernels take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Transform(NamedTuple):
    """A Hadamard transform: base float32 [order, order] (None: no transform) in blocks of `block` values."""

    base: Tensor | None
    order: int
    block: int


def dense(tensor: Tensor | None) -> Tensor | None:
    """Contiguous, or None."""
    return None if tensor is None else tensor.contiguous()


def transform(base: Tensor | None, block: int) -> Transform:
    """The transform of `base` [order, order], of any dtype, in blocks of `block`."""
    if base is None:
        return Transform(None, 0, 0)
    if base.dtype != torch.float32:  # to() takes a microsecond for nothing
        base = base.to(torch.float32)
    return Transform(base.contiguous(), base.shape[0], block)


def empty_tokens(m: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for codes int8 [m, k], scale float32 [m] and zero int32 [m] of quantized rows."""
    return torch.empty((m, k), dtype=torch.int8), torch.empty(m), torch.empty(m, dtype=torch.int32)
