"""The modules of an EAGLE-3 draft, without what training and decoding do with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfrot.draft.models.base import Draft, Head
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.layers import MLP, Projections, RMSNorm


class FusedLayer(nn.Module):
    """A decoder layer whose attention reads embedding and feature side by side."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.input_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(size, config.rms_norm_eps)
        self.self_attn = Projections(config, 2 * size, 2 * size, size)
        self.post_attention_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.mlp = MLP(size, config.intermediate_size)

    def inputs(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """Embeddings and features [B, n, d] -> input of the attention [B, n, 2 d]."""
        return torch.cat([self.input_layernorm(embeddings), self.hidden_norm(hidden)], -1)

    def finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Features [B, n, d] and what attention gathered [B, H, n, D] -> output [B, n, d]."""
        h = hidden + self.self_attn.output(mixed)
        return h + self.mlp(self.post_attention_layernorm(h))  # type: ignore[no-any-return]


class Eagle3Network(Draft):
    """Features are [.., 3 d], the outputs of `config.aux_layers`. Outputs are not normed; the head norms them."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.fc = nn.Linear(config.feature_size, size, bias=False)
        self.layers = nn.ModuleList([FusedLayer(config)])
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.lm_head = nn.Linear(size, config.proposed_size, bias=False)
        self.initialise()

    @property
    def layer(self) -> FusedLayer:
        """The decoder layer."""
        return self.layers[0]  # type: ignore[return-value]

    def logits(self, output: Tensor, head: Head) -> Tensor:
        """Outputs [..., d] -> logits [..., N], by the draft's own head."""
        return self.lm_head(self.norm(output))  # type: ignore[no-any-return]
