"""attention_scores"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_A_TIME = 64


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """Scores x of an architecture that lets only cap * tanh(x / cap) through (Gemma 2); None: as they are."""
    return scores if cap is None else torch.tanh(scores / cap) * cap
