"""Random operands of the bench, made directly in their packed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHECKED = 8  # rows that a gate compares: an op treats rows alike, and the reference is slow


@dataclass(frozen=True)
class Weight:
    """A 4-bit weight in the canonical layout: packed uint8 [N, K/2], scale bfloat16 [N, G], symmetric."""

    packed: Tensor
    scale: Tensor
    group: int

    @property
    def arguments(self) -> tuple[Tensor, Tensor, None, int]:
        """What the ops on the canonical layout take after the activations."""
        return self.packed, self.scale, None, self.group

    @property
    def nbytes(self) -> int:
        return self.packed.numel() + 2 * self.scale.numel()


def weight(n: int, k: int, group: int, draw: torch.Generator) -> Weight:
    """Random codes and scales; k even."""
    packed = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=draw)
    groups = -(-k // group) if group else 1
    scale = torch.empty(n, groups).uniform_(0.5, 1.0, generator=draw).mul_(k**-0.5).bfloat16()
    return Weight(packed, scale, group)


def activations(rows: int, k: int, draw: torch.Generator, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(rows, k).normal_(generator=draw).to(dtype)


def tokens(rows: int, k: int, bits: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random per-token codes int8 [M, K], scale float32 [M], zero int32 [M]."""
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (rows, k), dtype=torch.int8, generator=draw)
    scale = torch.empty(rows).uniform_(0.5, 1.0, generator=draw)
    zero = torch.randint(-half // 2, half // 2, (rows,), dtype=torch.int32, generator=draw)
    return codes, scale, zero


def ring(nbytes: int, cover: int) -> int:
    """How many operands of `nbytes` cover `cover` bytes of memory, at least two."""
    return max(2, -(-cover // max(nbytes, 1)))


def few(rows: int) -> list[int]:
    """The rows that a gate compares: first, last and some between, at most CHECKED."""
    if rows <= CHECKED:
        return list(range(rows))
    return sorted({round(i * (rows - 1) / (CHECKED - 1)) for i in range(CHECKED)})
