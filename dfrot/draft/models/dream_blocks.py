"""The blocks of a DREAM draft."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.layers import MLP, Projections, RMSNorm

GATE_AT_START = 0.5  # tanh(gate): 0, as published, would give the cross block no gradient until the gate has moved
SLOPES_AT_START = (2, -6)  # powers of two, of the first and of the last head: from the newest feature alone to all
NULL_KEY_STD = 0.02  # of the initial null key


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
        """The block's input h [B, n, d] and what attention gathered [B, H, n, D] -> the block's output [B, n, d]."""
        h = h + self.self_attn.output(mixed)
        return h + self.mlp(self.post_attention_layernorm(h))  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Gated cross-attention to features, without rotary positions, then a gated MLP."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        size = config.hidden_size
        read = size if config.aux_layers else config.target_hidden_size
        self.input_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.cross_attn = CrossAttention(config, size, read) if config.cross else None
        self.cross_attn_attn_gate = nn.Parameter(torch.full((1,), GATE_AT_START).atanh())
        self.cross_attn_mlp_gate = nn.Parameter(torch.full((1,), GATE_AT_START).atanh())
        self.post_attention_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.mlp = MLP(size, config.intermediate_size)

    def finish(self, h: Tensor, mixed: Tensor | None) -> Tensor:
        """Like SelfBlock.finish, through the gates; mixed: None in a draft without cross-attention."""
        if mixed is not None and self.cross_attn is not None:
            h = h + self.cross_attn_attn_gate.tanh() * self.cross_attn.output(mixed)
        return h + self.cross_attn_mlp_gate.tanh() * self.mlp(self.post_attention_layernorm(h))  # type: ignore[no-any-return]


class CrossAttention(Projections):
    """Projections with norms per head, and a learned null key and value [Hkv, 1, D] that every slot sees."""

    def __init__(self, config: DraftConfig, size: int, read: int) -> None:
        """size: width of the draft; read: width of the features."""
        super().__init__(config, size, read, size)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.null_k = nn.Parameter(NULL_KEY_STD * torch.randn(self.kv_heads, 1, self.dim))
        self.null_v = nn.Parameter(torch.zeros(self.kv_heads, 1, self.dim))
        slopes = torch.logspace(*SLOPES_AT_START, self.heads, base=2.0)
        self.log_slopes = nn.Parameter(slopes.log()) if config.distance else None

    def normed_queries(self, x: Tensor) -> Tensor:
        """x [B, n, d] -> [B, H, n, D]."""
        return self.q_norm(self.queries(x))  # type: ignore[no-any-return]

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features x [B, m, read] -> keys and values [B, Hkv, m, D]."""
        k, v = super().keys_values(x)
        return self.k_norm(k), v

    def distance_bias(self, slots: Tensor, features: Tensor) -> Tensor | None:
        """What is added to the scores, [B, H, n, 1 + m] for the null key and m features: minus slope times the distance
        of a feature from the newest one that the slot may see. Features behind the final norm say little about their
        position, and no rotary positions reach them. None for a draft without `distance`.

        slots: positions int64 [B, n]. features: positions int64 [m]."""
        if self.log_slopes is None:
            return None
        distance = (slots[..., None] - 1 - features).clamp(min=0)
        distance = torch.cat([distance.new_zeros(*distance.shape[:-1], 1), distance], -1)
        return -self.log_slopes.exp()[:, None, None] * distance[:, None]

    def with_null(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [B, Hkv, m, D] -> the same with the null key and value in front, m + 1."""
        shape = (k.shape[0], self.kv_heads, 1, self.dim)
        return torch.cat([self.null_k.to(k.dtype).expand(shape), k], 2), torch.cat(
            [self.null_v.to(v.dtype).expand(shape), v], 2
        )
