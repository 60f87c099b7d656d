"""Small pictures of large tensors: |activation| by token and channel, pooled by maxima so that peaks remain."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

MAX_ROWS, MAX_COLUMNS = 96, 192  # tokens and channels of a map


def pool_magnitudes(x: Tensor) -> dict[str, Any]:
    """x [S, d] -> {"tokens", "channels", "values" [rows][columns]}: the largest |x| of every cell, four digits."""
    rows, columns = min(MAX_ROWS, x.shape[0]), min(MAX_COLUMNS, x.shape[1])
    cells = adaptive_max_pool2d(x.detach().float().abs()[None, None], (rows, columns))[0, 0]
    values = [[float(f"{value:.4g}") for value in row] for row in cells.tolist()]
    return {"tokens": x.shape[0], "channels": x.shape[1], "values": values}
