"""The online rotations as data: R3 on queries and keys after RoPE, R4 on the input of down_proj.

They cannot be fused into weights, so the runtime applies them (QuaRot, arXiv 2404.00456)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.rotation.hadamard_bases import base_matrix


@dataclass(frozen=True)
class HadamardSpec:
    """A block-diagonal Hadamard transform of the last dimension: `x -> x (I (x) H_block)` with
    H_block = H_bases[0] (x) ... (x) Sylvester, normalised."""

    size: int
    """Width of the dimension."""
    block: int
    """Width of one block; divides `size`."""
    bases: tuple[int, ...] = ()
    """Orders of the Kronecker factors, largest first; Sylvester 2^k makes up the rest of `block`. Empty for a power
    of two."""

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON; `from_dict` is the inverse."""
        return {"size": self.size, "block": self.block, "bases": list(self.bases)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> HadamardSpec:
        """Raises UnsupportedError when a key is missing or the block does not divide the size."""
        try:
            spec = cls(int(value["size"]), int(value["block"]), tuple(int(order) for order in value["bases"]))
        except (KeyError, TypeError, ValueError):
            raise UnsupportedError(f"online rotation {value!r}: needs size, block and bases") from None
        if spec.block < 1 or spec.size < 1 or spec.size % spec.block:
            raise UnsupportedError(f"online rotation: block {spec.block} does not divide size {spec.size}")
        return spec

    def base(self) -> Tensor:
        """The dense factor of the transform: entries +-1, float32 [K, K]; [[1]] for a power of two."""
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
    """The online rotations that a checkpoint expects of its runtime."""

    r3: HadamardSpec | None = None
    """Transform of each head's queries and keys; None: not used."""
    r4: HadamardSpec | None = None
    """Transform of down_proj's input; None: not used."""

    def __bool__(self) -> bool:
        return self.r3 is not None or self.r4 is not None

    def to_dict(self) -> dict[str, Any]:
        """As config.json stores it: the rotations in use, by name."""
        return {name: spec.to_dict() for name, spec in (("r3", self.r3), ("r4", self.r4)) if spec is not None}

    @classmethod
    def from_dict(cls, value: dict[str, Any] | None) -> OnlineRotations:
        """Raises UnsupportedError for unknown or malformed entries."""
        value = value or {}
        unknown = set(value) - {"r3", "r4"}
        if unknown:
            raise UnsupportedError(f"online rotations: unknown keys {sorted(unknown)}; written by a newer dfq?")
        return cls(**{name: HadamardSpec.from_dict(spec) for name, spec in value.items()})
