"""The DFlash draft (arXiv 2602.06036): a block of draft tokens in one pass.

A block is the root's token and masks: [e(root), m, .., m]. The output of its slot k, k >= 1, predicts the token k
positions behind the root. With c = norm(fc(target features side by side)) of every position below the root, a layer
computes

    h += o(attention(q = h', k and v of [c ; h']));    h' = norm(h)
    h += mlp(norm(h))

with the same projections for c and the block, norms on queries and keys, rotary positions, and no causal mask inside
the block. Draft tokens of a block do not see one another: their distributions are the marginals of each position.
Tensor names are those that serving engines expect of such a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfrot.draft.models.base import TrainOutput
from dfrot.draft.models.block_attention import attend_blocks
from dfrot.draft.models.dflash_blocks import BlockLayer
from dfrot.draft.models.dflash_network import DFlashNetwork
from dfrot.draft.models.dflash_state import DFlashState


class DFlashDraft(DFlashNetwork):
    """The network with training and decoding."""

    def train_forward(
        self, embeddings: Tensor, positions: Tensor, features: Tensor, steps: int, roots: Tensor | None = None
    ) -> TrainOutput:
        """See `Draft.train_forward`. Every root gets a block, which sees the features before the root and itself."""
        batch, slots = positions.shape
        size = min(self.config.block_size, steps + 2)
        index, exists = _indices(torch.ones_like(positions, dtype=torch.bool) if roots is None else roots)
        block_positions = positions.gather(1, index)[..., None] + torch.arange(size, device=positions.device)
        block_positions = block_positions.clamp(max=self.config.max_position_embeddings - 1).flatten(1)
        anchors = embeddings.gather(1, index[..., None].expand(-1, -1, embeddings.shape[-1]))
        masks = self.mask_embedding.to(anchors.dtype).expand(batch, index.shape[1], size - 1, -1)
        h = torch.cat([anchors[:, :, None], masks], 2).flatten(1, 2)
        context = self.context(features)
        context_positions = torch.arange(features.shape[1], device=positions.device)[None]
        visible = context_positions[:, None] < positions.gather(1, index)[..., None]
        for layer in self.layers:
            h = self._train_layer(layer, h, block_positions, context, context_positions, visible, size)
        out = self.norm(h).unflatten(1, (-1, size))
        return TrainOutput(*_by_position(out, index, exists, slots))

    def _train_layer(
        self,
        layer: nn.Module,
        h: Tensor,
        block_positions: Tensor,
        context: Tensor,
        context_positions: Tensor,
        visible: Tensor,
        size: int,
    ) -> Tensor:
        """One layer on blocks h [B, blocks * size, d]; visible: bool [B, blocks, S], the context that a block sees."""
        assert isinstance(layer, BlockLayer)
        normed = layer.input_layernorm(h)
        k, v = layer.self_attn.keys_values(normed)
        q, own = self.rotary(layer.self_attn.queries(normed), block_positions), (self.rotary(k, block_positions), v)
        k, v = layer.self_attn.keys_values(context)
        return layer.finish(h, attend_blocks(q, *own, self.rotary(k, context_positions), v, visible, size))

    def begin(self, capacity: int) -> DFlashState:
        """An empty decoding state for a sequence of at most `capacity` slots."""
        return DFlashState(self, capacity)


def _indices(roots: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, n] -> the slots that are True, in order, int64 [B, most of a row], and which of these exist."""
    most = max(1, int(roots.sum(1).max()))
    index = (~roots).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    return index, roots.gather(1, index)


def _by_position(out: Tensor, index: Tensor, exists: Tensor, slots: int) -> tuple[list[Tensor], None, list[Tensor]]:
    """Outputs of blocks [B, blocks, size, d] as those of `TrainOutput`: the k-th draft token of the root at slot i is
    predicted at slot i + k - 1."""
    outputs, reached = [], []
    for t in range(out.shape[2] - 1):
        rows, blocks = (exists & (index + t < slots)).nonzero(as_tuple=True)
        at = (rows, index[rows, blocks] + t)
        outputs.append(out.new_zeros(out.shape[0], slots, out.shape[3]).index_put(at, out[rows, blocks, t + 1]))
        there = torch.zeros(out.shape[0], slots, dtype=torch.bool, device=out.device)
        reached.append(there.index_put(at, torch.ones_like(rows, dtype=torch.bool)))
    return outputs, None, reached
