"""rotary"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.config import DraftConfig

CHUNK = 512  # positions by which a table of angles grows


class Rotary:
    """Rotary position embedding (arXiv 2104.09864), half-split layout, from a table of `max_position_embeddings`.

    Not a module: its table is derived, and `draft.to(bfloat16)` must not round angles."""

    def __init__(self, config: DraftConfig) -> None:
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        angles = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] / config.rope_theta**half
        self.angles = torch.cat([angles, angles], -1)
        self.tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        self.wide: tuple[Tensor, Tensor] | None = None
        self.last: tuple[Tensor, torch.dtype, Tensor, Tensor] | None = None  # of one pass, whose blocks ask alike

    def table(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin float32 [.., D] of at least the first so many positions, on the CPU. Raises IndexError beyond
        `max_position_embeddings`: the kernels would read what is not there."""
        if positions > len(self.angles):
            raise IndexError(f"position {positions - 1}: the draft was made for {len(self.angles)}")
        if self.wide is None or len(self.wide[0]) < positions:
            part = self.angles[: (positions // CHUNK + 1) * CHUNK]
            self.wide = (part.cos().float(), part.sin().float())
        return self.wide

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, heads, n, D], positions int64 [B or 1, n]."""
        if self.last is None or self.last[0] is not positions or self.last[1] != x.dtype:
            kind = (x.dtype, x.device)
            if kind not in self.tables:
                self.tables[kind] = (self.angles.cos().to(x), self.angles.sin().to(x))
            cos, sin = (table[positions].unsqueeze(1) for table in self.tables[kind])
            self.last = (positions, x.dtype, cos, sin)
        _, _, cos, sin = self.last
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin
