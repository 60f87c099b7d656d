"""Rotary position embedding (arXiv 2104.09864), half-split layout."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.config import DraftConfig

CHUNK = 512  # positions by which the table for the kernels grows


class Rotary:
    """Rotates queries and keys, from tables of `max_position_embeddings` positions.

    Not a module: its tables are derived, and `draft.to(bfloat16)` must not round the angles."""

    def __init__(self, config: DraftConfig) -> None:
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        angles = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] / config.rope_theta**half
        self.angles = torch.cat([angles, angles], -1)
        self.tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        self.float32_table: tuple[Tensor, Tensor] | None = None
        self.last: tuple[Tensor, torch.dtype, Tensor, Tensor] | None = None  # all blocks of a pass use the same rows

    def table(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin, float32 [n, D] of at least `positions` positions, on the CPU. Raises IndexError beyond
        `max_position_embeddings`, where the kernels would read foreign memory."""
        if positions > len(self.angles):
            raise IndexError(f"position {positions - 1}: the draft was made for {len(self.angles)}")
        if self.float32_table is None or len(self.float32_table[0]) < positions:
            part = self.angles[: (positions // CHUNK + 1) * CHUNK]
            self.float32_table = (part.cos().float(), part.sin().float())
        return self.float32_table

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, heads, n, D], positions int64 [B or 1, n] -> x rotated."""
        if self.last is None or self.last[0] is not positions or self.last[1] != x.dtype:
            kind = (x.dtype, x.device)
            if kind not in self.tables:
                self.tables[kind] = (self.angles.cos().to(x), self.angles.sin().to(x))
            cos, sin = (table[positions].unsqueeze(1) for table in self.tables[kind])
            self.last = (positions, x.dtype, cos, sin)
        _, _, cos, sin = self.last
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin
