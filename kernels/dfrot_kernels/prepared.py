"""PreparedWeight: a 4-bit weight in the layout that the CPU kernels read in order (see ops/tile16/reference.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dfrot_kernels import bindings, native
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.ops.tile16.reference import ROWS
from dfrot_kernels.ops.tile16.schema import supports


@dataclass(frozen=True)
class PreparedWeight:
    """A 4-bit weight [N, K] in tiles. N16: N rounded up to 16, K8: K rounded up to 8, G: groups.

    tiles: uint8 [N16 / 16, K8 / 8, 64].
    scale: bfloat16 [G, N16].
    zero: uint8 [G, N16], or None: 8.
    sums: int32 [G, N16], sum of the codes of each group, or None: no activations with zero points.
    group: columns per scale, 0 = one scale per row.
    shape: (N, K).

    Holds what a PackedWeight holds, so that one of the two is enough: `to_packed(from_packed(w))` is w, bit for bit.
    """

    tiles: Tensor
    scale: Tensor
    zero: Tensor | None
    sums: Tensor | None
    group: int
    shape: tuple[int, int]

    @staticmethod
    def serves(weight: PackedWeight) -> bool:
        """Whether this weight should be prepared: it has a tiled layout, and a native kernel reads it."""
        return (
            native.active()
            and weight.packed.device.type == "cpu"
            and supports(weight.bits, weight.shape[1], weight.group)
        )

    @classmethod
    def from_packed(cls, weight: PackedWeight, with_sums: bool = True) -> PreparedWeight:
        """Prepack. with_sums: activations will have zero points.

        Raises:
            ValueError: codes of another width than 4, or groups that are no multiple of 8.
        """
        (n, k), group = weight.shape, weight.group
        if weight.bits != 4:
            raise ValueError(f"codes of {weight.bits} bits have no tiled layout, 4 are needed")
        tiles, sums = torch.ops.dfq.prepack(weight.packed, k, group, with_sums)
        pad = (0, -n % ROWS)
        zero = None if weight.zero is None else F.pad(weight.zero.T, pad, value=8).contiguous()
        return cls(tiles, F.pad(weight.scale.T, pad).contiguous(), zero, sums if with_sums else None, group, (n, k))

    def to_packed(self) -> PackedWeight:
        """The canonical layout again."""
        n, k = self.shape
        packed = torch.ops.dfq.unprepack(self.tiles, n, k)
        zero = None if self.zero is None else self.zero[:, :n].T.contiguous()
        return PackedWeight(packed, self.scale[:, :n].T.contiguous(), zero, 4, self.group, self.shape)

    def with_scale(self, scale: Tensor) -> PreparedWeight:
        """The same codes with other scales, bfloat16 [N, G]."""
        return replace(self, scale=F.pad(scale.T, (0, -self.shape[0] % ROWS)).contiguous())

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] float32, bfloat16 or float16 -> [..., N] of the same dtype."""
        (n, k), kind = self.shape, DTYPE_CODES.get(x.dtype)
        if kind is None or x.dim() == 0 or not self._direct(x, bias):
            result: Tensor = torch.ops.dfq.w4a16_tiled_mm(x, self.tiles, self.scale, self.zero, bias, n, self.group)
            return result
        rows = x.numel() // k
        out = x.new_empty((rows, n) if x.dim() == 2 else (*x.shape[:-1], n))
        bindings.tiled_w4a16(
            x=x, dtype=kind, m=rows, n=n, k=k, tiles=self.tiles, scale=self.scale, zero=self.zero, group=self.group,
            bias=bias, out=out,
        )  # fmt: skip
        return out

    def integer_linear(
        self, q: Tensor, x_scale: Tensor, x_zero: Tensor | None, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Codes int8 [M, K] with scale [M] and zero point int32 [M] (None: 0) -> [M, N] of `dtype`."""
        (n, k), sums, m = self.shape, self.sums, len(q)
        if (
            q.dtype != torch.int8
            or q.dim() != 2
            or not _vector(x_scale, torch.float32, m)
            or not (x_zero is None or (sums is not None and _vector(x_zero, torch.int32, m)))
            or dtype not in DTYPE_CODES
            or not self._direct(q, bias)
        ):
            result: Tensor = torch.ops.dfq.w4a8_tiled_mm(
                q, x_scale, x_zero, self.tiles, self.scale, self.zero, sums, bias, n, self.group, dtype
            )
            return result
        out = torch.empty((m, n), dtype=dtype)
        bindings.tiled_w4a8(
            q=q, x_scale=x_scale, x_zero=x_zero, m=m, n=n, k=k, tiles=self.tiles, scale=self.scale, zero=self.zero,
            sums=sums, group=self.group, bias=bias, dtype=DTYPE_CODES[dtype], out=out,
        )  # fmt: skip
        return out

    def _direct(self, x: Tensor, bias: Tensor | None) -> bool:
        """Whether the kernel may be called past the dispatcher, which costs more than the product of a small layer."""
        n, k = self.shape
        if k == 0 or x.size(-1) != k or not x.is_contiguous() or not native.direct(x):
            return False
        return bias is None or _vector(bias, torch.float32, n)


def _vector(x: Tensor, dtype: torch.dtype, length: int) -> bool:
    """Whether the kernels read x in place."""
    return x.dtype == dtype and x.is_cpu and x.dim() == 1 and x.size(0) == length and x.is_contiguous()
