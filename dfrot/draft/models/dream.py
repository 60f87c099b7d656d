"""The DREAM draft: self-attention on embeddings, gated cross-attention on target features, self-attention.

Arithmetic of one slot, its embedding e, visible features F (the target's, later the draft's own):

    h0 = e + o(attention(norm(e)));                    h0 += mlp(norm(h0))
    h1 = h0 + tanh(g_a) o(softmax(q [null, k(F)]) v);  h1 += tanh(g_m) mlp(norm(h1))
    h2 = h1 + o(attention(norm(h1)));                  h2 += mlp(norm(h2));      output = final_norm(h2)

What differs from the published code, and why, is in docs/design/drafts.md. Tensor names are the published ones, so that
its weights can be recognised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfrot.draft.models.attention import Diagonal, attend_with_diagonals
from dfrot.draft.models.base import Draft, Head, TrainOutput
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.dream_blocks import CrossBlock, SelfBlock
from dfrot.draft.models.layers import RMSNorm
from dfrot.draft.models.state import DraftState
from dfrot.draft.models.ttt_masks import TTTSlots


class DreamDraft(Draft):
    """See the module. Embeddings go in, post-norm features of the target's space come out."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        narrow = config.hidden_size != config.target_hidden_size
        size, target = config.hidden_size, config.target_hidden_size
        self.in_proj = nn.Linear(target, size, bias=False) if narrow else None
        self.out_proj = nn.Linear(size, target, bias=False) if narrow else None
        blocks: list[nn.Module] = [SelfBlock(config), CrossBlock(config)]
        self.layers = nn.ModuleList(blocks + [SelfBlock(config) for _ in range(config.num_final_layers)])
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.mid_proj = nn.Linear(size, target, bias=False) if narrow else None  # training only
        self.initialise()

    @property
    def first(self) -> SelfBlock:
        return self.layers[0]  # type: ignore[return-value]

    @property
    def cross(self) -> CrossBlock:
        return self.layers[1]  # type: ignore[return-value]

    @property
    def final(self) -> list[SelfBlock]:
        return list(self.layers[2:])  # type: ignore[arg-type]

    def enter(self, embeddings: Tensor) -> Tensor:
        return embeddings if self.in_proj is None else self.in_proj(embeddings)

    def leave(self, h: Tensor) -> Tensor:
        out = self.norm(h)
        return out if self.out_proj is None else self.out_proj(out)  # type: ignore[no-any-return]

    def train_forward(self, embeddings: Tensor, positions: Tensor, features: Tensor, steps: int) -> TrainOutput:
        slots = TTTSlots(positions, features.shape[1])
        x = self.enter(embeddings)
        h0 = self._self(self.first, x, slots, 0, [], slots.causal(0))
        mid = h0
        cross = self.cross.cross_attn
        queries = cross.normed_queries(self.cross.input_layernorm(h0)) if cross is not None else None
        dense = cross.with_null(*cross.keys_values(features)) if cross is not None else None
        lean = (
            cross.lean(positions, torch.arange(features.shape[1], device=features.device))
            if cross is not None
            else None
        )
        own: list[tuple[Tensor, Tensor]] = []
        kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.final]
        outputs = []
        for t in range(steps + 1):
            mixed = None
            if cross is not None and queries is not None and dense is not None:
                diagonals = [slots.diagonal(k, v, t - r) for r, (k, v) in enumerate(own)]
                near = [] if cross.log_slopes is None else [-cross.log_slopes.exp() * (t - r - 1) for r in range(t)]
                mixed = attend_with_diagonals(queries, *dense, slots.features_before(t), diagonals, lean, near)
            h = self.cross.finish(h0, mixed)
            if t == 0 and self.config.mid_block == 1:
                mid = h
            for block, store in zip(self.final, kept):
                h = self._self(block, h, slots, t, store, slots.causal(t))
            out = self.leave(h)
            outputs.append(out)
            if cross is not None and t < steps:
                own.append(cross.keys_values(out))
        return TrainOutput(outputs, mid if self.mid_proj is None else self.mid_proj(mid))

    def _self(
        self, block: SelfBlock, h: Tensor, slots: TTTSlots, t: int, store: list[tuple[Tensor, Tensor]], mask: Tensor
    ) -> Tensor:
        """One self-attention block at step t; `store` collects its keys and values, step by step."""
        normed = block.input_layernorm(h)
        q = self.rotary(block.self_attn.queries(normed), slots.positions)
        k, v = block.self_attn.keys_values(normed)
        store.append((self.rotary(k, slots.positions), v))
        diagonals: list[Diagonal] = [slots.diagonal(*store[r], t - r) for r in range(1, t + 1)] if t else []
        return block.finish(h, attend_with_diagonals(q, *store[0], mask, diagonals))

    def logits(self, output: Tensor, head: Head) -> Tensor:
        return head(output)

    def begin(self, capacity: int) -> DraftState:
        from dfrot.draft.models.dream_state import DreamState

        return DreamState(self, capacity)
