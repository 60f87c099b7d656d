"""state"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


class DraftState(ABC):
    """Keys and values of one sequence during decoding: verified slots first, drafted nodes behind them.

    Nodes are numbered from 0 in the order they are grown; the root is the last verified slot and has number -1."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots = 0  # verified slots; fewer than positions where image tokens were left out
        self.position = -1  # of the root, in the target's sequence
        self.ancestors = torch.zeros(0, 0, dtype=torch.bool)  # [nodes, nodes], itself included
        self.depths: list[int] = []  # of the nodes; their position is the root's + depth
        self.outputs: list[Tensor] = []  # of the root, then of the nodes, [1, d] each

    def mark(self) -> tuple[int, ...]:
        """Where the verified slots end now, for `back`."""
        return self.slots, self.position

    def back(self, mark: tuple[int, ...]) -> None:
        """Forget the slots behind `mark`; the root is gone with them, so `extend` comes next."""
        self.slots, self.position = mark[:2]

    @abstractmethod
    def extend(self, embeddings: Tensor, features: Tensor, places: Tensor | None = None) -> Tensor:
        """Add verified slots; forgets all drafted nodes. embeddings [m, d] of the tokens behind the root, or at the
        rising positions `places` int64 [m] (some left out); features [m', f]: of the positions that became known, so
        that all positions below the last new slot are. Returns the output of the last slot (the root), [1, d]."""

    @abstractmethod
    def grow(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        """Add drafted nodes, embeddings [k, d] of their tokens; parents are the root or of earlier calls.
        Returns their outputs [k, d]."""

    def _following(self, count: int, places: Tensor | None) -> Tensor:
        """Positions int64 [1, count] of new slots."""
        found = torch.arange(self.position + 1, self.position + 1 + count) if places is None else places
        return found[None]

    def _restart(self, positions: Tensor, root: Tensor) -> None:
        self.slots += positions.shape[1]
        self.position = int(positions[0, -1])
        self.ancestors = self.ancestors.new_zeros(0, 0)
        self.depths = []
        self.outputs = [root]

    def _enter(self, parents: list[int]) -> tuple[Tensor, Tensor | None]:
        """Register nodes. Returns positions int64 [1, k], and bool [k, nodes]: ancestors and itself, None if all."""
        old, count = len(self.depths), len(parents)
        grown = torch.zeros(old + count, old + count, dtype=torch.bool)
        grown[:old, :old] = self.ancestors
        for row, parent in enumerate(parents):
            if parent >= 0:
                grown[old + row] = grown[parent]
            grown[old + row, old + row] = True
            self.depths.append(self.depths[parent] + 1 if parent >= 0 else 1)
        self.ancestors = grown
        positions = torch.tensor([[self.position + depth for depth in self.depths[old:]]])
        rows = grown[old:]
        return positions, None if bool(rows.all()) else rows


def behind(verified: int, drafted: Tensor | None) -> Tensor | None:
    """`verified` visible columns in front of bool [k, n]; None stays None (everything is visible)."""
    if drafted is None:
        return None
    return torch.cat([drafted.new_ones(drafted.shape[0], verified), drafted], -1)


class Buffer:
    """Keys and values [1, Hkv, capacity, D] with rows written in place."""

    def __init__(self, kv_heads: int, capacity: int, dim: int, like: Tensor) -> None:
        self.k = torch.zeros((1, kv_heads, capacity, dim), dtype=like.dtype, device=like.device)
        self.v = torch.zeros_like(self.k)

    def write(self, begin: int, k: Tensor, v: Tensor) -> None:
        end = begin + k.shape[2]
        self.k[:, :, begin:end] = k
        self.v[:, :, begin:end] = v

    def read(self, end: int) -> tuple[Tensor, Tensor]:
        return self.k[:, :, :end], self.v[:, :, :end]
