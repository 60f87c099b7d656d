"""The modules of a DFlash draft, without what training and decoding do with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfrot.draft.models.base import Draft, Head
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.dflash_blocks import BlockLayer
from dfrot.draft.models.layers import RMSNorm

MASK_STD = 0.02  # of the embedding of masks, until `set_mask` gives it that of the target's token


class DFlashNetwork(Draft):
    """Features are [.., f], the outputs of `config.aux_layers` side by side; outputs are in the space of the target's
    features behind the final norm."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.fc = nn.Linear(config.feature_size, size, bias=False)
        self.hidden_norm = RMSNorm(size, config.rms_norm_eps)
        self.layers = nn.ModuleList([BlockLayer(config) for _ in range(config.num_layers)])
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.mask_embedding: Tensor
        self.register_buffer("mask_embedding", MASK_STD * torch.randn(size))
        self.initialise()

    @property
    def max_depth(self) -> int:
        """Draft tokens of a block."""
        return self.config.block_size - 1

    def training_steps(self, ttt_steps: int) -> int:
        """A block's last draft token is `max_depth` - 1 positions behind its first."""
        return self.max_depth - 1

    def set_mask(self, embedding: Tensor) -> None:
        """Take the target's embedding [d] of the token `config.mask_token_id` for the masks."""
        self.mask_embedding.copy_(embedding)

    def context(self, features: Tensor) -> Tensor:
        """Target features [.., f] -> what keys and values of the context are made of [.., d]."""
        return self.hidden_norm(self.fc(features))  # type: ignore[no-any-return]

    def logits(self, output: Tensor, head: Head) -> Tensor:
        """Outputs [..., d] -> logits [..., N], by the target's head, cut to the draft's tokens."""
        return head(output)
