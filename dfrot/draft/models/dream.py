"""The DREAM draft (arXiv 2505.19201): self-attention on embeddings, gated cross-attention on target features,
self-attention.

One slot with the embedding e and the visible features F (the target's, later the draft's own) computes

    h0 = e + o(attention(norm(e)));                    h0 += mlp(norm(h0))
    h1 = h0 + tanh(g_a) o(softmax(q [null, k(F)]) v);  h1 += tanh(g_m) mlp(norm(h1))
    h2 = h1 + o(attention(norm(h1)));                  h2 += mlp(norm(h2));      output = final_norm(h2)

A draft that reads layers (`aux_layers`, as EAGLE-3 fuses them, arXiv 2503.01840) has F = fc(a low, a middle and a deep
layer side by side), reads k(norm(F)) and v(norm(F)), and begins the second line at h0 + the newest of F, that of the
position before; where the target's is not known yet, h2 of the draft takes its place. Its output is h2, and the head
norms it.

What differs from the published code, and why, is in docs/design/drafts.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.attention import Diagonal, attend_with_diagonals
from dfrot.draft.models.base import Head, TrainOutput
from dfrot.draft.models.dream_blocks import SelfBlock
from dfrot.draft.models.dream_network import DreamNetwork
from dfrot.draft.models.dream_state import DreamState
from dfrot.draft.models.native_pass import few_rows
from dfrot.draft.models.ttt_masks import TTTSlots
from dfrot.generation.target import Target

KeysValues = tuple[Tensor, Tensor]


class DreamDraft(DreamNetwork):
    """The network with training and decoding."""

    def proposal_logits(self, target: Target) -> Head:
        """The function from outputs [k, d] to the logits [k, N] from which draft tokens are chosen."""
        if self.lm_head is None:
            return super().proposal_logits(target)
        return lambda output: few_rows(self.lm_head, self.imitation(output))

    def begin(self, capacity: int) -> DreamState:
        """An empty decoding state for a sequence of at most `capacity` slots, draft nodes included."""
        return DreamState(self, capacity)

    def train_forward(
        self, embeddings: Tensor, positions: Tensor, features: Tensor, steps: int, roots: Tensor | None = None
    ) -> TrainOutput:
        """See `Draft.train_forward`. Step t of the cross block sees target features before the root, and behind it the
        draft's own outputs of the steps before."""
        slots = TTTSlots(positions, features.shape[1])
        h0 = self._self_block(self.first, self.enter(embeddings), slots, 0, [])
        mid, fused = h0, self.fuse(features)
        cross = _CrossTraining(self, positions, fused)
        before = (positions - 1).clamp(min=0)[..., None].expand(-1, -1, h0.shape[-1])
        newest = fused.gather(1, before) * (positions > 0)[..., None] if self.joins else None
        final_stores: list[list[KeysValues]] = [[] for _ in self.final]
        outputs = []
        for t in range(steps + 1):
            h = h0 if newest is None else h0 + newest
            h = self.cross.finish(h, cross.attend(h, slots, t))
            if t == 0 and self.config.mid_block == 1:
                mid = h
            for block, store in zip(self.final, final_stores):
                h = self._self_block(block, h, slots, t, store)
            output = self.output_of(h)
            outputs.append(output)
            if t < steps:
                cross.append(output)
                newest = None if newest is None else slots.shifted(output)
        return TrainOutput(outputs, mid if self.mid_proj is None else self.mid_proj(mid))

    def _self_block(self, block: SelfBlock, h: Tensor, slots: TTTSlots, t: int, store: list[KeysValues]) -> Tensor:
        """One self-attention block at step t on h [B, n, d]; `store` collects its keys and values, step by step."""
        normed = block.input_layernorm(h)
        q = self.rotary(block.self_attn.queries(normed), slots.positions)
        k, v = block.self_attn.keys_values(normed)
        store.append((self.rotary(k, slots.positions), v))
        diagonals: list[Diagonal] = [slots.diagonal(*store[r], t - r) for r in range(1, t + 1)] if t else []
        return block.finish(h, attend_with_diagonals(q, *store[0], slots.causal(t), diagonals))


class _CrossTraining:
    """The cross-attention of one training batch: target keys are the same in every step."""

    def __init__(self, draft: DreamNetwork, positions: Tensor, fused: Tensor) -> None:
        self.draft, self.attention = draft, draft.cross.cross_attn
        self.own: list[KeysValues] = []  # of the draft's outputs, step by step
        self.queries: tuple[Tensor, Tensor] | None = None  # and what they were computed from
        if self.attention is None:
            return
        self.of_target = self.attention.with_null(*draft.keys_values(fused))
        self.bias = self.attention.distance_bias(positions, torch.arange(fused.shape[1], device=fused.device))

    def attend(self, h: Tensor, slots: TTTSlots, t: int) -> Tensor | None:
        """What step t gathers for the stream h [B, n, d], [B, H, n, D]; None in a draft without cross-attention."""
        if self.attention is None:
            return None
        if self.queries is None or self.queries[0] is not h:
            self.queries = (h, self.attention.normed_queries(self.draft.cross.input_layernorm(h)))
        diagonals = [slots.diagonal(k, v, t - r) for r, (k, v) in enumerate(self.own)]
        slopes, biases = self.attention.log_slopes, []
        if slopes is not None:
            biases = [-slopes.exp() * (t - r - 1) for r in range(t)]
        return attend_with_diagonals(
            self.queries[1], *self.of_target, slots.features_before(t), diagonals, self.bias, biases
        )

    def append(self, output: Tensor) -> None:
        """Make the outputs [B, n, d] of a step visible to the steps behind it."""
        if self.attention is not None:
            self.own.append(self.draft.keys_values(output))
