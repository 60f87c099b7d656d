"""The layers of a DFlash draft."""

from __future__ import annotations

from torch import Tensor, nn

from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.layers import MLP, Projections, RMSNorm


class NormedProjections(Projections):
    """q, k, v and o with norms on the queries and keys of every head."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config, config.hidden_size, config.hidden_size, config.hidden_size)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def queries(self, x: Tensor) -> Tensor:
        """x [B, n, d] -> [B, H, n, D]."""
        return self.q_norm(super().queries(x))  # type: ignore[no-any-return]

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, n, d] -> keys and values [B, Hkv, n, D]."""
        k, v = super().keys_values(x)
        return self.k_norm(k), v


class BlockLayer(nn.Module):
    """Attention of a block to the context and to itself, then a gated MLP, each behind a norm."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.input_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.self_attn = NormedProjections(config)
        self.post_attention_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.mlp = MLP(size, config.intermediate_size)

    def finish(self, h: Tensor, mixed: Tensor) -> Tensor:
        """The layer's input h [B, n, d] and what attention gathered [B, H, n, D] -> the layer's output [B, n, d]."""
        h = h + self.self_attn.output(mixed)
        return h + self.mlp(self.post_attention_layernorm(h))  # type: ignore[no-any-return]
