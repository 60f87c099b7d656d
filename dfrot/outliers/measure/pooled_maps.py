"""Small pictures of large tensors: |activation| by token and channel, pooled by maxima so that no spike is lost."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

TOKENS, CHANNELS = 96, 192


def pool_magnitudes(x: Tensor) -> dict[str, Any]:
    """x [S, d] -> {"tokens", "channels", "values" [rows][columns]}: the largest |x| of every cell, four digits."""
    rows, columns = min(TOKENS, x.shape[0]), min(CHANNELS, x.shape[1])
    small = adaptive_max_pool2d(x.detach().float().abs()[None, None], (rows, columns))[0, 0]
    values = [[float(f"{v:.4g}") for v in row] for row in small.tolist()]
    return {"tokens": x.shape[0], "channels": x.shape[1], "values": values}
