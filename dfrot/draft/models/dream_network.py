"""The modules of a DREAM draft, without what training and decoding do with them."""

from __future__ import annotations

from torch import Tensor, nn

from dfrot.draft.models.base import Draft, Head
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.dream_blocks import CrossBlock, SelfBlock
from dfrot.draft.models.layers import RMSNorm


class DreamNetwork(Draft):
    """Embeddings go in; what comes out is in the space of the target's features behind the final norm.

    With `config.aux_layers` features are [.., f], the outputs of these layers side by side, and fused to [.., width];
    outputs are not normed then, since they stand for fused features, and the head norms them.

    Tensor names are those of the published code, so that its weights can be recognised."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        narrow = config.hidden_size != config.target_hidden_size
        size, target = config.hidden_size, config.target_hidden_size
        self.in_proj = nn.Linear(target, size, bias=False) if narrow else None
        self.out_proj = nn.Linear(size, target, bias=False) if narrow else None
        blocks: list[nn.Module] = [SelfBlock(config), CrossBlock(config)]
        self.layers = nn.ModuleList(blocks + [SelfBlock(config) for _ in range(config.num_final_layers)])
        self.norm = RMSNorm(size, config.rms_norm_eps)
        fused = bool(config.aux_layers)
        self.fc = nn.Linear(config.feature_size, size, bias=False) if fused else None
        self.feature_norm = RMSNorm(size, config.rms_norm_eps) if fused and config.cross else None
        self.mid_proj = nn.Linear(size, target, bias=False) if narrow else None  # for training only
        # named as eagle3's; None where the target's head is used
        self.lm_head = nn.Linear(target, config.proposed_size, bias=False) if config.trained_head else None
        self.initialise()

    @property
    def first(self) -> SelfBlock:
        """The block on embeddings."""
        return self.layers[0]  # type: ignore[return-value]

    @property
    def cross(self) -> CrossBlock:
        """The block that reads the target's features."""
        return self.layers[1]  # type: ignore[return-value]

    @property
    def final(self) -> list[SelfBlock]:
        """The blocks behind the cross block."""
        return list(self.layers[2:])  # type: ignore[arg-type]

    def enter(self, embeddings: Tensor) -> Tensor:
        """The target's embeddings [..., target width] -> input of the first block [..., width]."""
        return embeddings if self.in_proj is None else self.in_proj(embeddings)

    def leave(self, h: Tensor) -> Tensor:
        """Output of the last block [..., width] -> in the space of the target's features [..., target width]."""
        out = self.norm(h)
        return out if self.out_proj is None else self.out_proj(out)  # type: ignore[no-any-return]

    @property
    def joins(self) -> bool:
        """Whether the cross block begins at the first block's output plus the newest fused feature."""
        return self.fc is not None and self.config.newest

    def fuse(self, features: Tensor) -> Tensor:
        """The target's features [..., f] -> what the cross block reads, [..., width]; without `aux_layers` the features
        themselves."""
        return features if self.fc is None else self.fc(features)

    def keys_values(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, Hkv, m, D] of the cross-attention from fused features, or outputs, [B, m, width]."""
        assert self.cross.cross_attn is not None
        return self.cross.cross_attn.keys_values(fused if self.feature_norm is None else self.feature_norm(fused))

    def output_of(self, h: Tensor) -> Tensor:
        """The last block's output [..., width] -> the draft's."""
        return self.leave(h) if self.fc is None else h

    def imitation(self, output: Tensor) -> Tensor:
        """See `Draft.imitation`."""
        return output if self.fc is None else self.leave(output)

    def logits(self, output: Tensor, head: Head) -> Tensor:
        """Outputs [..., d] -> logits [..., N], by the draft's own head or the target's, cut to the draft's tokens."""
        return (head if self.lm_head is None else self.lm_head)(self.imitation(output))
