"""Attention scores recomputed from queries and keys by those who observe attention."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_A_TIME = 64  # query rows whose scores are in memory at once


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """Soft-capped scores, cap * tanh(x / cap), of architectures that have a cap (Gemma 2); None: unchanged."""
    return scores if cap is None else torch.tanh(scores / cap) * cap
