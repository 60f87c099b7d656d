"""What the decoding states of drafts that keep the target's features in their buffers have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dfrot.draft.models.base import Draft
from dfrot.draft.models.native_pass import native_pass
from dfrot.draft.models.state import CachedDraftState, KeyValueBuffer
from dfrot_kernels.whole_blocks.draft import DraftPass


class FeatureDraftState(CachedDraftState):
    """Small passes are one native call where `native` (native_pass.py) serves the draft."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.features = 0  # target features in the buffers
        self.native: DraftPass | None = None
        self.native_passes = 0

    def _prepare_native(self, draft: Draft, buffers: Sequence[KeyValueBuffer]) -> None:
        """Let a native pass read and write `buffers`, if there is one for this draft."""
        self.native = native_pass(draft)
        if self.native is not None:
            self.table = self.native.buffers([(buffer.k[0], buffer.v[0]) for buffer in buffers])

    def _before(self, fused: Tensor, positions: Tensor | None) -> Tensor:
        """Of fused features [m', d] that became known, those just before each of m new slots [m, d]; zeros before the
        first token. positions: int64 [m] of the slots, None for consecutive ones."""
        if self.slots == 0:
            fused = torch.cat([fused.new_zeros(1, fused.shape[-1]), fused])
        return fused if positions is None else fused[positions - self.position - 1]

    def _of_parents(self, parents: list[int]) -> Tensor:
        """Outputs [k, d] of the nodes' parents."""
        if len(parents) == 1:
            return self.outputs[parents[0] + 1]
        return torch.cat([self.outputs[parent + 1] for parent in parents])

    def mark(self) -> tuple[int, ...]:
        """The current end of the verified slots and of the features."""
        return (*super().mark(), self.features)

    def back(self, mark: tuple[int, ...]) -> None:
        """Drop verified slots and features behind `mark`."""
        super().back(mark)
        self.features = mark[2]
