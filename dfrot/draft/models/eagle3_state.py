"""Decoding with an EAGLE-3 draft: appending verified slots, and growing a chain or tree of draft nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.attention import attend
from dfrot.draft.models.eagle3_network import Eagle3Network
from dfrot.draft.models.feature_state import FeatureDraftState
from dfrot.draft.models.native_pass import few_rows
from dfrot.draft.models.state import KeyValueBuffer, behind, causal_mask
from dfrot_kernels.whole_blocks.draft import LINES, Slots


class Eagle3State(FeatureDraftState):
    """One buffer of keys and values: verified slots in front, draft nodes behind them.

    Passes of up to LINES rows are one native call where that serves the draft (native_pass.py)."""

    def __init__(self, draft: Eagle3Network, capacity: int, native: bool = True) -> None:
        """native: False computes every pass through the modules."""
        super().__init__(capacity)
        self.draft = draft
        config, like = draft.config, draft.norm.weight
        self.buffer = KeyValueBuffer(config.num_key_value_heads, capacity, config.head_dim, like)
        if native:
            self._prepare_native(draft, [self.buffer])

    def extend(self, embeddings: Tensor, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `DraftState.extend`."""
        count, old = len(embeddings), self.slots
        hidden = self._before(few_rows(self.draft.fc, features.to(self.buffer.k.dtype)), positions)
        new_positions = self._new_positions(count, positions)
        if self.native is not None and count <= LINES:
            out = self._call(embeddings, hidden, new_positions, old, causal_mask(0, count), int(new_positions[0, -1]))
        else:
            out = self._pass(embeddings, hidden, new_positions, old, causal_mask(old, count))
        self._restart(new_positions, out[-1:])
        return self.outputs[0]

    def grow(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        """See `DraftState.grow`."""
        old, hidden = len(self.depths), self._of_parents(parents)
        positions, visible = self._add_nodes(parents)
        if self.native is not None and len(parents) <= LINES:
            tree, deepest = None if visible is None else visible.contiguous(), self.position + max(self.depths[old:])
            out = self._call(embeddings, hidden, positions, self.slots + old, tree, deepest)
        else:
            out = self._pass(embeddings, hidden, positions, self.slots + old, behind(self.slots, visible))
        self.outputs += list(torch.split(out, 1))
        return out

    def _call(
        self, embeddings: Tensor, hidden: Tensor, positions: Tensor, at: int, tree: Tensor | None, last: int
    ) -> Tensor:
        """`_pass` as one native call. tree: bool [n, at + n - slots], which rows behind the verified slots a new row
        sees; None: all. last: the largest position."""
        assert self.native is not None
        self.native_passes += 1
        slots = Slots(positions, at, self.slots, tree, 1, 0, 0, None, None)
        angles = self.draft.rotary.table(last + 1)
        return self.native.run(embeddings.to(hidden.dtype), None, self.table, angles, slots, hidden)

    def _pass(self, embeddings: Tensor, hidden: Tensor, positions: Tensor, at: int, mask: Tensor | None) -> Tensor:
        """The layer on new rows, embeddings and hidden [n, d], which go to buffer rows at .. at + n."""
        layer, rotary = self.draft.layer, self.draft.rotary
        x = layer.inputs(embeddings.to(hidden.dtype)[None], hidden[None])
        q = rotary(layer.self_attn.queries(x), positions)
        k, v = layer.self_attn.keys_values(x)
        self.buffer.write(at, rotary(k, positions), v)
        mixed = attend(q, *self.buffer.read(at + x.shape[1]), mask)
        return layer.finish(hidden[None], mixed)[0]
