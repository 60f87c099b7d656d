"""PyTorch's kernels for the same shapes, on random weights: what people run instead of ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dfrot.bench.clock import Call

INT4_GROUPS = (32, 64, 128, 256)  # group sizes of torch's int4 kernel


def bfloat16(n: int, k: int, rows: int, generator: torch.Generator) -> tuple[Call, int]:
    """torch's bfloat16 linear: (call, bytes of the weight)."""
    weight = torch.empty(n, k, dtype=torch.bfloat16).normal_(generator=generator)
    x = torch.empty(rows, k, dtype=torch.bfloat16).normal_(generator=generator)
    return (lambda: F.linear(x, weight)), 2 * n * k


def int4(n: int, k: int, rows: int, generator: torch.Generator, group: int) -> tuple[Call, int]:
    """torch's weight-only 4-bit linear, `_weight_int4pack_mm_for_cpu`: (call, bytes of the codes). It has no scales per
    channel: groups of 128 stand in for them."""
    group = group if group in INT4_GROUPS else 128
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=generator)  # in the kernel's packed size
    scales = torch.empty(k // group, n, 2, dtype=torch.bfloat16).uniform_(generator=generator)
    x = torch.empty(rows, k, dtype=torch.bfloat16).normal_(generator=generator)
    return (lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, group, scales)), codes.numel()


def int8(n: int, k: int, rows: int, generator: torch.Generator) -> tuple[Call, int]:
    """torch's int8 product `_int_mm`, without unpacking and scales: (call, bytes of the weight)."""
    weight = torch.randint(-128, 128, (k, n), dtype=torch.int8, generator=generator)
    x = torch.randint(-128, 128, (rows, k), dtype=torch.int8, generator=generator)
    return (lambda: torch._int_mm(x, weight)), n * k


def linears(n: int, k: int, rows: int, group: int) -> dict[str, Callable[[torch.Generator], tuple[Call, int]]]:
    """The peers that can run this shape on this machine, by name."""
    by_name: dict[str, Callable[[torch.Generator], tuple[Call, int]]] = {
        "torch bf16": lambda generator: bfloat16(n, k, rows, generator),
        "torch int8": lambda generator: int8(n, k, rows, generator),
    }
    int4_group = group if group in INT4_GROUPS else 128
    if hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu") and k % int4_group == 0 and n % 16 == 0:
        by_name["torch int4"] = lambda generator: int4(n, k, rows, generator, group)
    return by_name


def copy(x: Tensor) -> Call:
    """A copy of the same activations: a lower bound for an elementwise kernel."""
    out = torch.empty_like(x)
    return lambda: out.copy_(x)
