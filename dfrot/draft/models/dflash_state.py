"""Decoding with a DFlash draft: the context grows by the features of accepted tokens, a block is computed whole."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.attention import attend
from dfrot.draft.models.dflash_network import DFlashNetwork
from dfrot.draft.models.feature_state import FeatureDraftState
from dfrot.draft.models.state import KeyValueBuffer
from dfrot_kernels.whole_blocks.draft import LINES, Slots


class DFlashState(FeatureDraftState):
    """A buffer per layer: keys and values of the context in front, those of the block behind them.

    A block of up to LINES rows is one native call where that serves the draft (native_pass.py)."""

    whole_blocks = True

    def __init__(self, draft: DFlashNetwork, capacity: int, native: bool = True) -> None:
        """native: False computes blocks through the modules."""
        super().__init__(capacity)
        self.draft = draft
        config, like = draft.config, draft.norm.weight
        rows = capacity + config.block_size
        shape = (config.num_key_value_heads, rows, config.head_dim)
        self.buffers = [KeyValueBuffer(*shape, like) for _ in draft.layers]
        if native and config.block_size <= LINES:
            self._prepare_native(draft, self.buffers)

    def extend(self, embeddings: Tensor, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `DraftState.extend`. Returns the outputs [n, d] of all draft tokens of the block, the first one first;
        fewer where the context ends."""
        new_positions = self._new_positions(len(embeddings), positions)
        root, config = int(new_positions[0, -1]), self.draft.config
        self._append(features)
        rows = min(config.block_size, config.max_position_embeddings - root)
        masks = self.draft.mask_embedding.expand(rows - 1, -1)
        like = self.buffers[0].k
        block = torch.cat([embeddings[-1:].to(like.dtype), masks.to(like.dtype)])
        block_positions = torch.arange(root, root + rows)[None]
        out = (self._by_modules if self.native is None else self._natively)(block, block_positions)
        self._restart(new_positions, out[1:])
        return out[1:]

    def grow(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        """Not called: a block proposes all its tokens at once."""
        raise TypeError("a block of draft tokens is computed whole; it does not grow")

    def _append(self, features: Tensor) -> None:
        """Append keys and values of features [n, f] to the context."""
        if not len(features):
            return
        draft, end = self.draft, self.features + len(features)
        context = draft.context(features[None].to(self.buffers[0].k.dtype))
        positions = torch.arange(self.features, end)[None]
        for layer, buffer in zip(draft.layers, self.buffers):
            k, v = layer.self_attn.keys_values(context)  # type: ignore[union-attr, operator]
            buffer.write(self.features, draft.rotary(k, positions), v)
        self.features = end

    def _natively(self, block: Tensor, positions: Tensor) -> Tensor:
        assert self.native is not None
        self.native_passes += 1
        slots = Slots(positions, self.features, self.features, None, 1, 0, 0, None, None)
        angles = self.draft.rotary.table(int(positions[0, -1]) + 1)
        return self.native.run(block, None, self.table, angles, slots)

    def _by_modules(self, block: Tensor, positions: Tensor) -> Tensor:
        draft, h = self.draft, block[None]
        for layer, buffer in zip(draft.layers, self.buffers):
            normed = layer.input_layernorm(h)  # type: ignore[operator]
            k, v = layer.self_attn.keys_values(normed)  # type: ignore[union-attr, operator]
            buffer.write(self.features, draft.rotary(k, positions), v)
            q = draft.rotary(layer.self_attn.queries(normed), positions)  # type: ignore[union-attr, operator]
            mixed = attend(q, *buffer.read(self.features + h.shape[1]), None)
            h = layer.finish(h, mixed)  # type: ignore[operator]
        return draft.norm(h)[0]  # type: ignore[no-any-return]
