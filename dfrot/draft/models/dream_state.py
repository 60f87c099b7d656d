"""Decoding with a DREAM draft: appending verified slots, and growing a chain or tree of draft nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.attention import attend
from dfrot.draft.models.dream_blocks import SelfBlock
from dfrot.draft.models.dream_network import DreamNetwork
from dfrot.draft.models.feature_state import FeatureDraftState
from dfrot.draft.models.native_pass import few_rows
from dfrot.draft.models.state import KeyValueBuffer, behind, causal_mask
from dfrot_kernels.whole_blocks.draft import LINES, Slots


class DreamState(FeatureDraftState):
    """Buffers per block: verified rows in front, draft nodes behind them.

    The cross buffer holds the null key, the target's features, and then keys of the draft's own outputs, of the root
    and of nodes. A node sees those of its strict ancestors only.

    Passes of up to LINES rows are one native call where that serves the draft (native_pass.py)."""

    def __init__(self, draft: DreamNetwork, capacity: int, native: bool = True) -> None:
        """native: False computes every pass through the modules."""
        super().__init__(capacity)
        self.draft = draft
        self.first = self._buffer(capacity)
        self.final = [self._buffer(capacity) for _ in draft.final]
        self.cross = self._buffer(capacity + 2)
        self.keyed = 0  # of `outputs`, those that have a key in the cross buffer
        if draft.cross.cross_attn is not None:
            null = draft.cross.cross_attn
            self.cross.write(0, null.null_k.data[None], null.null_v.data[None])
        if native:
            self._prepare_native(draft, [self.first, self.cross, *self.final])

    def _buffer(self, capacity: int) -> KeyValueBuffer:
        config = self.draft.config
        return KeyValueBuffer(config.num_key_value_heads, capacity, config.head_dim, self.draft.norm.weight)

    def extend(self, embeddings: Tensor, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `DraftState.extend`."""
        new_positions = self._new_positions(len(embeddings), positions)
        fused = features.to(self.cross.k.dtype)
        if self.draft.fc is not None:
            fused = few_rows(self.draft.fc, fused)
        newest = self._before(fused, positions) if self.draft.joins else None
        if self.native is not None and max(len(embeddings), len(features)) <= LINES:
            root = self._extend_natively(embeddings, fused, newest, new_positions)
        else:
            root = self._extend_by_modules(embeddings, fused, newest, new_positions)
        self._restart(new_positions, root)
        self.keyed = 0
        return root

    def _extend_by_modules(self, embeddings: Tensor, fused: Tensor, newest: Tensor | None, positions: Tensor) -> Tensor:
        draft, count, old = self.draft, len(embeddings), self.slots
        if draft.cross.cross_attn is not None:
            self.cross.write(1 + self.features, *draft.keys_values(fused[None]))
        self.features += len(fused)
        cross_mask = None
        if count > 1 or self.features > int(positions[0, 0]):
            cross_mask = torch.arange(-1, self.features) < positions[0, :, None]
            cross_mask[:, 0] = True  # the null key
        ends = (old, causal_mask(old, count), cross_mask, 1 + self.features)
        return self._pass(embeddings[None], newest, positions, *ends)[0, -1:]

    def _extend_natively(self, embeddings: Tensor, fused: Tensor, newest: Tensor | None, positions: Tensor) -> Tensor:
        count, known = len(embeddings), 1 + self.features
        self.features += len(fused)
        slots = Slots(positions, self.slots, self.slots, causal_mask(0, count), known, self.features, 0, None, None)
        return self._call(embeddings, fused, newest, slots, int(positions[0, -1]))[-1:]

    def grow(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        """See `DraftState.grow`."""
        if self.native is not None and max(len(parents), len(self.outputs) - self.keyed) <= LINES:
            out = self._grow_natively(embeddings, parents)
        else:
            out = self._grow_by_modules(embeddings, parents)
        self.outputs += list(torch.split(out, 1))
        return out

    def _grow_by_modules(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        old, newest = len(self.depths), self._of_parents(parents) if self.draft.joins else None
        if self.draft.cross.cross_attn is not None and self.keyed < len(self.outputs):
            new_outputs = torch.cat(self.outputs[self.keyed :])[None]
            self.cross.write(1 + self.features + self.keyed, *self.draft.keys_values(new_outputs))
            self.keyed = len(self.outputs)
        positions, visible = self._add_nodes(parents)
        cross_mask = None
        if visible is not None or self.keyed != old + 1:
            # keys: the root's output, then those of earlier nodes; a node's own output does not exist yet
            strict_ancestors = self.ancestors[old:, : self.keyed - 1]
            cross_mask = behind(1 + self.features + 1, strict_ancestors)
        cross_end = 1 + self.features + self.keyed
        self_mask = behind(self.slots, visible)
        return self._pass(embeddings[None], newest, positions, self.slots + old, self_mask, cross_mask, cross_end)[0]

    def _grow_natively(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        old, known = len(self.depths), 1 + self.features + self.keyed
        newest = self._of_parents(parents) if self.draft.joins else None
        new_outputs = self.outputs[self.keyed :]
        self.keyed = len(self.outputs)
        drafted_positions = torch.tensor([self.position + depth for depth in [0, *self.depths]])
        positions, visible = self._add_nodes(parents)
        cross_tree = None if visible is None else behind(1, self.ancestors[old:, : self.keyed - 1])
        tree = None if visible is None else visible.contiguous()
        cross = (known, self.features, self.keyed, drafted_positions, cross_tree)
        slots = Slots(positions, self.slots + old, self.slots, tree, *cross)
        new = new_outputs[0] if len(new_outputs) == 1 else torch.cat(new_outputs) if new_outputs else None
        return self._call(embeddings, new, newest, slots, self.position + max(self.depths[old:]))

    def _call(
        self, embeddings: Tensor, new_features: Tensor | None, newest: Tensor | None, slots: Slots, last: int
    ) -> Tensor:
        """One native pass. new_features: what gets keys in the cross buffer first. newest: see `_pass`. last: the
        largest position."""
        assert self.native is not None
        self.native_passes += 1
        dtype = self.first.k.dtype
        new = None if new_features is None or self.draft.cross.cross_attn is None else new_features.to(dtype)
        angles = self.draft.rotary.table(last + 1)
        return self.native.run(embeddings.to(dtype), new, self.table, angles, slots, newest)

    def _pass(
        self,
        x: Tensor,
        newest: Tensor | None,
        positions: Tensor,
        at: int,
        self_mask: Tensor | None,
        cross_mask: Tensor | None,
        cross_end: int,
    ) -> Tensor:
        """The blocks on new rows x [1, n, d], which go to buffer rows at .. at + n.

        newest: [n, width], what is added to the stream before the cross block. self_mask: bool [n, at + n] of the self
        blocks. cross_mask: bool [n, cross_end] of the cross block. cross_end:
        rows of the cross buffer in use."""
        draft = self.draft
        h = self._self_block(draft.first, self.first, draft.enter(x.to(self.first.k.dtype)), positions, at, self_mask)
        block = draft.cross
        h = h if newest is None else h + newest
        mixed = None
        if block.cross_attn is not None:
            q = block.cross_attn.normed_queries(block.input_layernorm(h))
            bias = block.cross_attn.distance_bias(positions, self._feature_positions(cross_end))
            if bias is not None:
                cross_mask = bias[0] if cross_mask is None else bias[0].masked_fill(~cross_mask, -torch.inf)
                cross_mask = cross_mask.to(q.dtype)
            mixed = attend(q, *self.cross.read(cross_end), cross_mask)
        h = block.finish(h, mixed)
        for final, buffer in zip(draft.final, self.final):
            h = self._self_block(final, buffer, h, positions, at, self_mask)
        return draft.output_of(h)

    def _feature_positions(self, end: int) -> Tensor:
        """Positions int64 [end - 1] of the cross buffer's rows behind the null key: target features, then outputs of
        the root and of nodes."""
        drafted = [self.position + depth for depth in [0, *self.depths][: end - 1 - self.features]]
        return torch.cat([torch.arange(self.features), torch.tensor(drafted, dtype=torch.long)])

    def _self_block(
        self, block: SelfBlock, buffer: KeyValueBuffer, h: Tensor, positions: Tensor, at: int, mask: Tensor | None
    ) -> Tensor:
        normed = block.input_layernorm(h)
        q = self.draft.rotary(block.self_attn.queries(normed), positions)
        k, v = block.self_attn.keys_values(normed)
        buffer.write(at, self.draft.rotary(k, positions), v)
        return block.finish(h, attend(q, *buffer.read(at + h.shape[1]), mask))
