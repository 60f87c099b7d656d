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

from dfrot.draft.models.base import Draft, DraftState, Head, TrainOutput
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.layers import MLP, Diagonal, Projections, RMSNorm, attend_with_diagonals
from dfrot.draft.models.ttt_masks import TTTSlots

GATE_AT_START = 0.5  # tanh(gate): 0, as published, would give the cross block no gradient until the gate has moved
SLOPES_AT_START = (2, -6)  # powers of two, of the first and of the last head: from the newest feature alone to all


class SelfBlock(nn.Module):
    """Self-attention with rotary positions, then a gated MLP, each behind a norm."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.input_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.self_attn = Projections(config, size, size, size)
        self.post_attention_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.mlp = MLP(size, config.intermediate_size)

    def finish(self, h: Tensor, mixed: Tensor) -> Tensor:
        """h [B, n, d] and what attention gathered [B, H, n, D] -> the block's output."""
        h = h + self.self_attn.output(mixed)
        return h + self.mlp(self.post_attention_layernorm(h))  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Cross-attention to features, no rotary positions, always able to look at a learned null key instead."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        size, target = config.hidden_size, config.target_hidden_size
        self.input_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.cross_attn = CrossAttention(config, size, target) if config.cross else None
        self.cross_attn_attn_gate = nn.Parameter(torch.full((1,), GATE_AT_START).atanh())
        self.cross_attn_mlp_gate = nn.Parameter(torch.full((1,), GATE_AT_START).atanh())
        self.post_attention_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.mlp = MLP(size, config.intermediate_size)

    def finish(self, h: Tensor, mixed: Tensor | None) -> Tensor:
        """As SelfBlock.finish, through the gates; `mixed` None when the draft has no cross-attention."""
        if mixed is not None and self.cross_attn is not None:
            h = h + self.cross_attn_attn_gate.tanh() * self.cross_attn.output(mixed)
        return h + self.cross_attn_mlp_gate.tanh() * self.mlp(self.post_attention_layernorm(h))  # type: ignore[no-any-return]


class CrossAttention(Projections):
    """Projections with head norms and the null key and value [Hkv, 1, D]."""

    def __init__(self, config: DraftConfig, size: int, target: int) -> None:
        super().__init__(config, size, target, size)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.null_k = nn.Parameter(0.02 * torch.randn(self.kv_heads, 1, self.dim))
        self.null_v = nn.Parameter(torch.zeros(self.kv_heads, 1, self.dim))
        slopes = torch.logspace(*SLOPES_AT_START, self.heads, base=2.0)
        self.log_slopes = nn.Parameter(slopes.log()) if config.distance else None

    def normed_queries(self, x: Tensor) -> Tensor:
        return self.q_norm(self.queries(x))  # type: ignore[no-any-return]

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().keys_values(x)
        return self.k_norm(k), v

    def lean(self, slots: Tensor, features: Tensor) -> Tensor | None:
        """What is added to the scores, [B, H, n, 1 + m] for the null and features of positions [m], from slots of
        positions [B, n]: minus slope times how far a feature is from the newest one that a slot may see. Post-norm
        features say little about where they stand, and no rotary positions reach them; None without `distance`."""
        if self.log_slopes is None:
            return None
        far = (slots[..., None] - 1 - features).clamp(min=0)
        far = torch.cat([far.new_zeros(*far.shape[:-1], 1), far], -1)
        return -self.log_slopes.exp()[:, None, None] * far[:, None]

    def with_null(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [B, Hkv, m, D] -> the same with the null in front, m + 1."""
        shape = (k.shape[0], self.kv_heads, 1, self.dim)
        return torch.cat([self.null_k.to(k.dtype).expand(shape), k], 2), torch.cat(
            [self.null_v.to(v.dtype).expand(shape), v], 2
        )


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
