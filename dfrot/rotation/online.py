"""The rotations that cannot be fused, as data: R3 on queries and keys after RoPE, R4 on the input of down_proj."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError


@dataclass(frozen=True)
class HadamardSpec:
    """A block-diagonal Hadamard transform of the last dimension.

    size: width of the dimension; block: width of one block (divides size); bases: Kronecker factors of known
    order, largest first, multiplied by Sylvester 2^k to make `block` (empty for a pure power of two).
    `x -> x (I (x) H_block)` with H_block = H_bases[0] (x) ... (x) Sylvester, normalised.
    """

    size: int
    block: int
    bases: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"size": self.size, "block": self.block, "bases": list(self.bases)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> HadamardSpec:
        try:
            spec = cls(int(value["size"]), int(value["block"]), tuple(int(b) for b in value["bases"]))
        except (KeyError, TypeError, ValueError):
            raise UnsupportedError(f"online rotation {value!r}: needs size, block and bases") from None
        if spec.block < 1 or spec.size < 1 or spec.size % spec.block:
            raise UnsupportedError(f"online rotation: block {spec.block} does not divide size {spec.size}")
        return spec

    def base(self) -> Tensor:
        """The odd part of the transform: entries +-1, float32 [K0, K0]; [[1]] for a power of two."""
        from dfrot.rotation.hadamard import base_matrix

        base = torch.ones(1, 1, dtype=torch.float64)
        for order in self.bases:
            base = torch.kron(base, base_matrix(order))
        return base.to(torch.float32)

    def apply(self, x: Tensor) -> Tensor:
        """`x` [..., size] times the transform, in x's dtype (float64 stays float64)."""
        import dfrot_kernels  # noqa: F401  (registers torch.ops.dfq)

        return torch.ops.dfq.hadamard(x, self.base(), self.block)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class OnlineRotations:
    """What a checkpoint expects its runtime to do. None: that rotation is not used."""

    r3: HadamardSpec | None = None
    r4: HadamardSpec | None = None

    def __bool__(self) -> bool:
        return self.r3 is not None or self.r4 is not None

    def to_dict(self) -> dict[str, Any]:
        return {name: spec.to_dict() for name, spec in (("r3", self.r3), ("r4", self.r4)) if spec is not None}

    @classmethod
    def from_dict(cls, value: dict[str, Any] | None) -> OnlineRotations:
        value = value or {}
        unknown = set(value) - {"r3", "r4"}
        if unknown:
            raise UnsupportedError(f"online rotations: unknown keys {sorted(unknown)}; written by a newer dfq?")
        return cls(**{name: HadamardSpec.from_dict(spec) for name, spec in value.items()})
