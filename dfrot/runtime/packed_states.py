"""Keys or values of one layer as packed integers, in buffers that grow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dfrot.rotation.online import HadamardSpec

MIN_GROWTH = 64  # positions; larger buffers grow by a quarter: few copies, at most 25 % unused


@dataclass(frozen=True)
class KVSpec:
    """How keys and values are stored."""

    bits: int
    """Width of a code, 2 to 8."""
    symmetric: bool
    """Codes around 0, without a zero code."""
    clip: float
    """Clip ratio of the dynamic range of a token and head."""
    r3: HadamardSpec | None
    """R3, applied to keys before quantization; None: no rotation."""

    def r3_operands(self, device: torch.device) -> tuple[Tensor | None, int]:
        """R3 as the operators take it: base [n, n] on `device` and block size, or (None, 0)."""
        return (None, 0) if self.r3 is None else (_base(self.r3, device), self.r3.block)


@lru_cache(maxsize=64)
def _base(spec: HadamardSpec, device: torch.device) -> Tensor:
    return spec.base().to(device)


class PackedStates:
    """Keys or values of one layer, laid out [position, batch, head, ...]: the part in use is one contiguous block, and
    appending a token writes in place.

    parts: codes uint8 [capacity, B, H, bytes], scale float16 [capacity, B, H] and, unless symmetric, zero code uint8
    [capacity, B, H]; empty until `reserve`."""

    def __init__(self, spec: KVSpec, head_dim: int) -> None:
        self.spec, self.head_dim = spec, head_dim
        self.parts: list[Tensor] = []

    def reserve(self, needed: int, used: int, batch: int, heads: int, device: torch.device) -> None:
        """Make room for `needed` positions; the first `used` keep their content. Buffers are replaced by new ones,
        never resized."""
        if self.parts and self.parts[0].shape[0] >= needed:
            return
        capacity = needed + max(MIN_GROWTH, needed // 4) if self.parts else needed
        rows, width = (capacity, batch, heads), (self.head_dim * self.spec.bits + 7) // 8
        grown = [
            torch.empty(*rows, width, dtype=torch.uint8, device=device),
            torch.empty(rows, dtype=torch.float16, device=device),
        ]
        if not self.spec.symmetric:
            grown.append(torch.empty(rows, dtype=torch.uint8, device=device))
        for old, larger in zip(self.parts, grown):
            larger[:used] = old[:used]
        self.parts = grown

    def buffers(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, scale and zero code (None: symmetric), as the operators take them."""
        codes, scale = self.parts[:2]
        return codes, scale, None if self.spec.symmetric else self.parts[2]

    def read(self, used: int, dtype: torch.dtype) -> Tensor:
        """Positions 0 .. used, dequantized: [used, B, H, D] in `dtype`."""
        codes, scale, zero = self.buffers()
        zero = None if zero is None else zero[:used]
        stored = (codes[:used], scale[:used], zero)
        states: Tensor = torch.ops.dfq.kv_dequantize(*stored, self.head_dim, self.spec.bits, dtype)
        return states

    def select(self, index: Tensor, used: int) -> None:
        """Keep, or repeat, sequences of the batch: index int64 [new batch]."""
        self.parts = [part[:used].index_select(1, index.to(part.device)) for part in self.parts]

    def to(self, device: torch.device | str) -> None:
        """Move the buffers."""
        self.parts = [part.to(device, non_blocking=True) for part in self.parts]
