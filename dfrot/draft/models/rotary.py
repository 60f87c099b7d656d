"""Rotary position embedding (arXiv 2104.09864), half-split layout."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.draft.models.config import DraftConfig

CHUNK = 512  # positions by which the table for the kernels grows


class Rotary:
    """Rotates queries and keys by the angles of their positions, in float64.

    Not a module: what it keeps is derived, and `draft.to(bfloat16)` must not round the angles. No table of all
    positions: a target's context may have millions."""

    def __init__(self, config: DraftConfig) -> None:
        self.theta, self.head_dim, self.context = config.rope_theta, config.head_dim, config.max_position_embeddings
        self.float32_table: tuple[Tensor, Tensor] | None = None
        self.last: tuple[Tensor, torch.dtype, Tensor, Tensor] | None = None  # all blocks of a pass use the same rows

    def _angles(self, positions: Tensor) -> Tensor:
        """Radians, float64 [..., D], of positions int64 [...]; both halves are equal."""
        half = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=positions.device) / self.head_dim
        angles = positions[..., None].double() / self.theta**half
        return torch.cat([angles, angles], -1)

    def table(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin, float32 [n, D] of at least `positions` positions, on the CPU. Raises IndexError beyond
        `max_position_embeddings`, where the kernels would read foreign memory."""
        if positions > self.context:
            raise IndexError(f"position {positions - 1}: the draft was made for {self.context}")
        if self.float32_table is None or len(self.float32_table[0]) < positions:
            angles = self._angles(torch.arange(min((positions // CHUNK + 1) * CHUNK, self.context)))
            self.float32_table = (angles.cos().float(), angles.sin().float())
        return self.float32_table

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, heads, n, D], positions int64 [B or 1, n] -> x rotated."""
        if self.last is None or self.last[0] is not positions or self.last[1] != x.dtype:
            angles = self._angles(positions)
            self.last = (positions, x.dtype, angles.cos().to(x).unsqueeze(1), angles.sin().to(x).unsqueeze(1))
        _, _, cos, sin = self.last
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin
