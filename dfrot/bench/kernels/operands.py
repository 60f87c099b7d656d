"""Random operands of the kernel bench, made directly in packed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GATE_ROWS = 8  # rows that a gate compares: operators treat rows alike, and the reference is slow


@dataclass(frozen=True)
class Weight:
    """A symmetric weight in the canonical layout."""

    packed: Tensor
    """Codes: two of 4 bits per byte, uint8 [N, K/2], or one of 8."""
    scale: Tensor
    """bfloat16 [N, G]."""
    group: int
    """Columns per scale; 0: one scale per row."""

    @property
    def arguments(self) -> tuple[Tensor, Tensor, None, int]:
        """What operators on the canonical layout take after the activations."""
        return self.packed, self.scale, None, self.group

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.numel() + 2 * self.scale.numel()


def random_weight(n: int, k: int, group: int, generator: torch.Generator) -> Weight:
    """Random codes and scales of a weight [n, k]; k even."""
    packed = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=generator)
    groups = -(-k // group) if group else 1
    scale = torch.empty(n, groups).uniform_(0.5, 1.0, generator=generator).mul_(k**-0.5).bfloat16()
    return Weight(packed, scale, group)


def random_bytes(n: int, k: int, group: int, generator: torch.Generator) -> Weight:
    """The same with codes of 8 bits, packed [n, k]; any k."""
    packed = torch.randint(0, 256, (n, k), dtype=torch.uint8, generator=generator)
    groups = -(-k // group) if group else 1
    scale = torch.empty(n, groups).uniform_(0.03, 0.06, generator=generator).mul_(k**-0.5).bfloat16()
    return Weight(packed, scale, group)


def random_activations(rows: int, k: int, generator: torch.Generator, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Gaussian activations [rows, k]."""
    return torch.empty(rows, k).normal_(generator=generator).to(dtype)


def random_codes(rows: int, k: int, bits: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random activations quantized per token: codes int8 [M, K], scale float32 [M], zero int32 [M]."""
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (rows, k), dtype=torch.int8, generator=generator)
    scale = torch.empty(rows).uniform_(0.5, 1.0, generator=generator)
    zero = torch.randint(-half // 2, half // 2, (rows,), dtype=torch.int32, generator=generator)
    return codes, scale, zero


def ring_size(nbytes: int, cover: int) -> int:
    """How many operands of `nbytes` bytes cover `cover` bytes of memory, at least two."""
    return max(2, -(-cover // max(nbytes, 1)))


def gate_rows(rows: int) -> list[int]:
    """The rows that a gate compares: first, last and evenly spaced ones between, GATE_ROWS at most."""
    if rows <= GATE_ROWS:
        return list(range(rows))
    return sorted({round(i * (rows - 1) / (GATE_ROWS - 1)) for i in range(GATE_ROWS)})
