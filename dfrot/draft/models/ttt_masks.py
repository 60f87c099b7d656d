"""Masks of the training-time test, from positions alone (slots may be missing where image tokens were left out).

Step t at a slot of position P replays drafting from the root P - t: it sees everything verified up to the root, and of
every earlier step r a single key, the draft's own at position P - t + r (EAGLE-3, arXiv 2503.01840, with DREAM's
alignment of slots and features).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.attention import Diagonal


class TTTSlots:
    """The slots of one training batch."""

    def __init__(self, positions: Tensor, count: int) -> None:
        """positions: int64 [B, n] of the slots, rising. count: of target features, at positions 0 .. count - 1."""
        self.positions = positions
        self.count = count
        batch, slots = positions.shape
        size = int(positions.max()) + 1
        self.slot_of = positions.new_full((batch, size), -1)
        self.slot_of.scatter_(1, positions, torch.arange(slots, device=positions.device).expand(batch, slots))

    def features_before(self, t: int) -> Tensor:
        """bool [B, n, 1 + count]: the null key, and features of positions below P - t."""
        feature_positions = torch.arange(-1, self.count, device=self.positions.device)
        before = feature_positions < self.positions[..., None] - t
        before[..., 0] = True
        return before

    def causal(self, t: int) -> Tensor:
        """bool [B, n, n]: slots of positions up to P - t."""
        return self.positions[:, None, :] <= self.positions[..., None] - t

    def diagonal(self, k: Tensor, v: Tensor, back: int) -> Diagonal:
        """Of keys and values [B, Hkv, n, D], for every row the one at position P - back, and whether it exists."""
        if back == 0:
            return k, v, torch.ones_like(self.positions, dtype=torch.bool)
        slot, exists = self._slots_back(back)
        index = slot[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        return k.gather(2, index), v.gather(2, index), exists

    def shifted(self, x: Tensor, back: int = 1) -> Tensor:
        """x [B, n, d]: for every row the row of position P - back; zeros where there is none."""
        slot, exists = self._slots_back(back)
        return x.gather(1, slot[..., None].expand_as(x)) * exists[..., None]

    def _slots_back(self, back: int) -> tuple[Tensor, Tensor]:
        """For every slot the slot int64 [B, n] of position P - back (0 where there is none), and whether it exists."""
        wanted = self.positions - back
        slot = self.slot_of.gather(1, wanted.clamp(min=0))
        return slot.clamp(min=0), (wanted >= 0) & (slot >= 0)
