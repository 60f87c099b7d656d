"""PackedWeight: the canonical layout of an integer weight, as it lies on disk and as the ops take it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot_kernels.ops.packing.schema import check_dequantize


@dataclass(frozen=True)
class PackedWeight:
    """An integer weight [N, K]: `w = scale * (u - zero)`.

    packed: uint8 [N, ceil(K bits / 8)], unsigned codes u as `pack` stores them.
    scale: bfloat16 [N, G].
    zero: uint8 [N, G], or None: 2^(bits-1).
    bits: of a code, 2 to 8.
    group: columns per scale, 0 = one scale per row (G = 1).
    shape: (N, K).

    Raises ValueError where they do not fit together.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    group: int
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        check_dequantize(self.packed, self.scale, self.zero, self.bits, self.shape[1], self.group)

    @classmethod
    def from_codes(cls, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group: int) -> PackedWeight:
        """Pack unsigned codes uint8 [N, K]."""
        packed = torch.ops.dfq.pack(codes, bits)
        return cls(packed, scale, zero, bits, group, (codes.shape[0], codes.shape[1]))

    def codes(self) -> Tensor:
        """Unsigned codes uint8 [N, K]."""
        out: Tensor = torch.ops.dfq.unpack(self.packed, self.bits, self.shape[1])
        return out

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dense weight [N, K]: exact in float32, rounded once to `dtype`."""
        out: Tensor = torch.ops.dfq.dequantize(self.packed, self.scale, self.zero, self.bits, self.shape[1], self.group)
        return out.to(dtype)
