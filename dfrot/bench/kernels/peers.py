"""The linears people run instead of ours, on random weights of the same shape: torch's, in this process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dfrot.bench.clock import Call

GROUPS = (32, 64, 128, 256)  # what torch's int4 kernel has


def bfloat16(n: int, k: int, rows: int, draw: torch.Generator) -> tuple[Call, int]:
    """torch's bfloat16 linear. (call, bytes of the weight)"""
    weight = torch.empty(n, k, dtype=torch.bfloat16).normal_(generator=draw)
    x = torch.empty(rows, k, dtype=torch.bfloat16).normal_(generator=draw)
    return (lambda: F.linear(x, weight)), 2 * n * k


def int4pack(n: int, k: int, rows: int, draw: torch.Generator, group: int) -> tuple[Call, int]:
    """torch's weight-only 4-bit linear, `_weight_int4pack_mm_for_cpu`; per-channel scales become groups of 128."""
    group = group if group in GROUPS else 128
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=draw)  # already in the kernel's size
    scales = torch.empty(k // group, n, 2, dtype=torch.bfloat16).uniform_(generator=draw)
    x = torch.empty(rows, k, dtype=torch.bfloat16).normal_(generator=draw)
    return (lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, group, scales)), codes.numel()


def int8(n: int, k: int, rows: int, draw: torch.Generator) -> tuple[Call, int]:
    """torch's int8 product `_int_mm`: no unpacking, no scales."""
    weight = torch.randint(-128, 128, (k, n), dtype=torch.int8, generator=draw)
    x = torch.randint(-128, 128, (rows, k), dtype=torch.int8, generator=draw)
    return (lambda: torch._int_mm(x, weight)), n * k


def linears(n: int, k: int, rows: int, group: int) -> dict[str, Callable[[torch.Generator], tuple[Call, int]]]:
    """The peers that can run this shape here, by name."""
    found: dict[str, Callable[[torch.Generator], tuple[Call, int]]] = {
        "torch bf16": lambda draw: bfloat16(n, k, rows, draw),
        "torch int8": lambda draw: int8(n, k, rows, draw),
    }
    used = group if group in GROUPS else 128
    if hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu") and k % used == 0 and n % 16 == 0:
        found["torch int4"] = lambda draw: int4pack(n, k, rows, draw, group)
    return found


def copy(x: Tensor) -> Call:
    """A plain copy of the same activations: what an elementwise kernel cannot beat."""
    out = torch.empty_like(x)
    return lambda: out.copy_(x)
