"""The modules of a DREAM draft, without what training and decoding do with them."""

from __future__ import annotations

from torch import Tensor, nn

from dfrot.draft.models.base import Draft, Head
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.dream_blocks import CrossBlock, SelfBlock
from dfrot.draft.models.layers import RMSNorm


class DreamNetwork(Draft):
    """Embeddings go in; what comes out is in the space of the target's features behind the final norm.

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
        self.mid_proj = nn.Linear(size, target, bias=False) if narrow else None  # for training only
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
        """Output of the last block [..., width] -> the draft's output [..., target width]."""
        out = self.norm(h)
        return out if self.out_proj is None else self.out_proj(out)  # type: ignore[no-any-return]

    def logits(self, output: Tensor, head: Head) -> Tensor:
        """Outputs [..., d] -> logits [..., N], by the target's head, cut to the draft's tokens."""
        return head(output)
