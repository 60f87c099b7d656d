"""Masks of the training-time test, from positions alone (slots may be missing where image tokens were pruned).

Step t at a slot of position P replays drafting from the root P - t: it sees what was verified up to there, and of
every earlier step r one single key, the draft's own at position P - t + r (EAGLE-3's test, with DREAM's alignment).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.attention import Diagonal


class TTTSlots:
    """positions int64 [B, n], rising; count: how many target features there are (positions 0 .. count - 1)."""

    def __init__(self, positions: Tensor, count: int) -> None:
        self.positions = positions
        self.count = count
        batch, slots = positions.shape
        size = int(positions.max()) + 1
        self.slot_of = positions.new_full((batch, size), -1)
        self.slot_of.scatter_(1, positions, torch.arange(slots, device=positions.device).expand(batch, slots))

    def features_before(self, t: int) -> Tensor:
        """bool [B, n, 1 + count]: the null, and features of positions below P - t."""
        places = torch.arange(-1, self.count, device=self.positions.device)
        before = places < self.positions[..., None] - t
        before[..., 0] = True
        return before

    def causal(self, t: int) -> Tensor:
        """bool [B, n, n]: slots of positions up to P - t."""
        return self.positions[:, None, :] <= self.positions[..., None] - t

    def diagonal(self, k: Tensor, v: Tensor, back: int) -> Diagonal:
        """Of keys and values [B, Hkv, n, D] the one at position P - back for every row, and whether it exists."""
        if back == 0:
            return k, v, torch.ones_like(self.positions, dtype=torch.bool)
        wanted = self.positions - back
        slot = self.slot_of.gather(1, wanted.clamp(min=0))
        there = (wanted >= 0) & (slot >= 0)
        index = slot.clamp(min=0)[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        return k.gather(2, index), v.gather(2, index), there

    def shifted(self, x: Tensor, back: int = 1) -> Tensor:
        """x [B, n, d]: the row of position P - back for every row; zeros where there is none."""
        wanted = self.positions - back
        slot = self.slot_of.gather(1, wanted.clamp(min=0))
        there = (wanted >= 0) & (slot >= 0)
        return x.gather(1, slot.clamp(min=0)[..., None].expand_as(x)) * there[..., None]
