"""Decoding with a DREAM draft: extending by verified slots, growing a chain or a tree of guesses."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.attention import attend
from dfrot.draft.models.dream import DreamDraft
from dfrot.draft.models.dream_blocks import SelfBlock
from dfrot.draft.models.native_pass import native_pass
from dfrot.draft.models.state import Buffer, DraftState, behind
from dfrot_kernels.draft import LINES, Slots


class DreamState(DraftState):
    """Buffers per block: verified rows in front, drafted ones behind. The cross buffer begins with the null key;
    a drafted key there is made from the output of the root or of a node and is seen by strict descendants only.

    Up to LINES rows are one native call (native.py) where that serves the draft and `native` allows it."""

    def __init__(self, draft: DreamDraft, capacity: int, native: bool = True) -> None:
        super().__init__(capacity)
        self.draft = draft
        config, like = draft.config, draft.norm.weight
        self.first = Buffer(config.num_key_value_heads, capacity, config.head_dim, like)
        self.final = [Buffer(config.num_key_value_heads, capacity, config.head_dim, like) for _ in draft.final]
        self.cross = Buffer(config.num_key_value_heads, capacity + 2, config.head_dim, like)
        self.features = 0  # true features in the cross buffer, behind the null
        self.keyed = 0  # outputs (root first) that have a key there
        if draft.cross.cross_attn is not None:
            null = draft.cross.cross_attn
            self.cross.write(0, null.null_k.data[None], null.null_v.data[None])
        self.native = native_pass(draft) if native else None
        self.natively = 0  # passes that were native calls
        if self.native is not None:
            stores = [self.first, self.cross, *self.final]
            self.table = self.native.buffers([(store.k[0], store.v[0]) for store in stores])

    def extend(self, embeddings: Tensor, features: Tensor, places: Tensor | None = None) -> Tensor:
        draft, count, old = self.draft, len(embeddings), self.slots
        if self.native is not None and max(count, len(features)) <= LINES:
            return self._extend_natively(embeddings, features, places)
        if draft.cross.cross_attn is not None:
            k, v = draft.cross.cross_attn.keys_values(features[None].to(self.cross.k.dtype))
            self.cross.write(1 + self.features, k, v)
        self.features += len(features)
        positions = self._following(count, places)
        seen = None if count == 1 else torch.arange(old + count) <= torch.arange(old, old + count)[:, None]
        before = None
        if count > 1 or self.features > int(positions[0, 0]):
            before = torch.arange(-1, self.features) < positions[0, :, None]
            before[:, 0] = True
        out = self._pass(embeddings[None], positions, old, seen, before, 1 + self.features)
        self._restart(positions, out[0, -1:])
        self.keyed = 0
        return self.outputs[0]

    def mark(self) -> tuple[int, ...]:
        return (*super().mark(), self.features)

    def back(self, mark: tuple[int, ...]) -> None:
        super().back(mark)
        self.features = mark[2]

    def _extend_natively(self, embeddings: Tensor, features: Tensor, places: Tensor | None) -> Tensor:
        count, known = len(embeddings), 1 + self.features
        self.features += len(features)
        positions = self._following(count, places)
        tree = None if count == 1 else torch.ones(count, count, dtype=torch.bool).tril()
        seen = Slots(positions, self.slots, self.slots, tree, known, self.features, 0, None, None)
        out = self._call(embeddings, features, seen, int(positions[0, -1]))
        self._restart(positions, out[-1:])
        self.keyed = 0
        return self.outputs[0]

    def grow(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        old = len(self.depths)
        if self.native is not None and max(len(parents), len(self.outputs) - self.keyed) <= LINES:
            return self._grow_natively(embeddings, parents)
        if self.draft.cross.cross_attn is not None and self.keyed < len(self.outputs):
            fresh = torch.cat(self.outputs[self.keyed :])[None]
            self.cross.write(1 + self.features + self.keyed, *self.draft.cross.cross_attn.keys_values(fresh))
            self.keyed = len(self.outputs)
        positions, rows = self._enter(parents)
        strict = None
        if rows is not None or self.keyed != old + 1:
            # keys: the root's output, then one per keyed node; a node's own output does not exist yet
            own = self.ancestors[old:, : self.keyed - 1]
            strict = behind(1 + self.features + 1, own)
        end = 1 + self.features + self.keyed
        out = self._pass(embeddings[None], positions, self.slots + old, behind(self.slots, rows), strict, end)[0]
        self.outputs += list(torch.split(out, 1))
        return out

    def _grow_natively(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        old, known = len(self.depths), 1 + self.features + self.keyed
        fresh = self.outputs[self.keyed :]
        self.keyed = len(self.outputs)
        places = torch.tensor([self.position + depth for depth in [0, *self.depths]])
        positions, rows = self._enter(parents)
        strict = None if rows is None else behind(1, self.ancestors[old:, : self.keyed - 1])
        cross = (known, self.features, self.keyed, places, strict)
        seen = Slots(positions, self.slots + old, self.slots, None if rows is None else rows.contiguous(), *cross)
        new = fresh[0] if len(fresh) == 1 else torch.cat(fresh) if fresh else None
        out = self._call(embeddings, new, seen, self.position + max(self.depths[old:]))
        self.outputs += list(torch.split(out, 1))
        return out

    def _call(self, embeddings: Tensor, fresh: Tensor | None, seen: Slots, last: int) -> Tensor:
        """One native pass; `last`: the largest position."""
        assert self.native is not None
        self.natively += 1
        dtype = self.first.k.dtype
        new = None if fresh is None or self.draft.cross.cross_attn is None else fresh.to(dtype)
        return self.native.run(embeddings.to(dtype), new, self.table, self.draft.rotary.table(last + 1), seen)

    def _pass(
        self, x: Tensor, positions: Tensor, at: int, seen: Tensor | None, visible: Tensor | None, cross_end: int
    ) -> Tensor:
        """The three blocks on new rows x [1, n, d] that go to buffer rows at .. at + n. seen: bool [n, at + n] for
        the self blocks, visible: bool [n, cross_end] for the cross block."""
        draft = self.draft
        h = self._self(draft.first, self.first, draft.enter(x.to(self.first.k.dtype)), positions, at, seen)
        block = draft.cross
        mixed = None
        if block.cross_attn is not None:
            q = block.cross_attn.normed_queries(block.input_layernorm(h))
            lean = block.cross_attn.lean(positions, self._places(cross_end))
            if lean is not None:
                visible = lean[0] if visible is None else lean[0].masked_fill(~visible, -torch.inf)
                visible = visible.to(q.dtype)
            mixed = attend(q, *self.cross.read(cross_end), visible)
        h = block.finish(h, mixed)
        for final, buffer in zip(draft.final, self.final):
            h = self._self(final, buffer, h, positions, at, seen)
        return draft.leave(h)

    def _places(self, end: int) -> Tensor:
        """Positions int64 [end - 1] of what the cross buffer holds behind the null: true features, then the outputs
        of the root and of the nodes."""
        drafted = [self.position + depth for depth in [0, *self.depths][: end - 1 - self.features]]
        return torch.cat([torch.arange(self.features), torch.tensor(drafted, dtype=torch.long)])

    def _self(
        self, block: SelfBlock, buffer: Buffer, h: Tensor, positions: Tensor, at: int, seen: Tensor | None
    ) -> Tensor:
        normed = block.input_layernorm(h)
        q = self.draft.rotary(block.self_attn.queries(normed), positions)
        k, v = block.self_attn.keys_values(normed)
        buffer.write(at, self.draft.rotary(k, positions), v)
        return block.finish(h, attend(q, *buffer.read(at + h.shape[1]), seen))
