"""The decoding state of a draft: its key/value buffers, and the draft tree that is being grown."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class CachedDraftState(ABC):
    """Implements `DraftState` (dfrot/generation/speculation/drafter.py) for keys and values in buffers: verified slots
    first, the nodes of the current draft tree behind them."""

    whole_blocks = False

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots = 0  # verified slots; fewer than positions where image tokens were left out
        self.position = -1  # of the root, in the target's sequence
        self.ancestors = torch.zeros(0, 0, dtype=torch.bool)  # [nodes, nodes]: whether a column is above a row, or it
        self.depths: list[int] = []  # of the nodes; a node's position is the root's + depth
        self.outputs: list[Tensor] = []  # of the root, then of the nodes, [1, d] each

    def mark(self) -> tuple[int, ...]:
        """The current end of the verified slots, for `back`."""
        return self.slots, self.position

    def back(self, mark: tuple[int, ...]) -> None:
        """Drop the verified slots behind `mark`. The root is gone with them: `extend` must be the next call."""
        self.slots, self.position = mark[:2]

    @abstractmethod
    def extend(self, embeddings: Tensor, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """Append verified slots and drop all draft nodes; see `DraftState.extend`. Returns the root's output [1, d]."""

    @abstractmethod
    def grow(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        """Append draft nodes with embeddings [k, d]; see `DraftState.grow`. Returns their outputs [k, d]."""

    def _new_positions(self, count: int, positions: Tensor | None) -> Tensor:
        """Positions int64 [1, count] of new slots: the given ones, or those behind the root."""
        if positions is None:
            positions = torch.arange(self.position + 1, self.position + 1 + count)
        return positions[None]

    def _restart(self, positions: Tensor, root: Tensor) -> None:
        """Note that slots at `positions` int64 [1, m] were appended, and start an empty tree below the last of them,
        whose output is `root` [1, d]."""
        self.slots += positions.shape[1]
        self.position = int(positions[0, -1])
        self.ancestors = self.ancestors.new_zeros(0, 0)
        self.depths = []
        self.outputs = [root]

    def _add_nodes(self, parents: list[int]) -> tuple[Tensor, Tensor | None]:
        """Append nodes to the tree. Returns their positions int64 [1, k], and which nodes they see (their ancestors and
        themselves) as bool [k, nodes], or None if all."""
        old, count = len(self.depths), len(parents)
        ancestors = torch.zeros(old + count, old + count, dtype=torch.bool)
        ancestors[:old, :old] = self.ancestors
        for row, parent in enumerate(parents):
            if parent >= 0:
                ancestors[old + row] = ancestors[parent]
            ancestors[old + row, old + row] = True
            self.depths.append(self.depths[parent] + 1 if parent >= 0 else 1)
        self.ancestors = ancestors
        positions = torch.tensor([[self.position + depth for depth in self.depths[old:]]])
        visible = ancestors[old:]
        return positions, None if bool(visible.all()) else visible


def causal_mask(cached: int, count: int) -> Tensor | None:
    """bool [count, cached + count] for `count` new slots behind `cached` ones; None for a single slot, which sees
    everything."""
    if count == 1:
        return None
    return torch.arange(cached + count) <= torch.arange(cached, cached + count)[:, None]


def behind(verified: int, visible: Tensor | None) -> Tensor | None:
    """bool [k, n] with `verified` visible columns put in front; None stays None (everything is visible)."""
    if visible is None:
        return None
    return torch.cat([visible.new_ones(visible.shape[0], verified), visible], -1)


class KeyValueBuffer:
    """Keys and values [1, Hkv, capacity, D], written in place."""

    def __init__(self, kv_heads: int, capacity: int, dim: int, like: Tensor) -> None:
        """like: a tensor of the dtype and device to use."""
        self.k = torch.zeros((1, kv_heads, capacity, dim), dtype=like.dtype, device=like.device)
        self.v = torch.zeros_like(self.k)

    def write(self, begin: int, k: Tensor, v: Tensor) -> None:
        """Write k, v [1, Hkv, n, D] to the rows from `begin` on."""
        end = begin + k.shape[2]
        self.k[:, :, begin:end] = k
        self.v[:, :, begin:end] = v

    def read(self, end: int) -> tuple[Tensor, Tensor]:
        """The first `end` rows, as views."""
        return self.k[:, :, :end], self.v[:, :, :end]
