"""Attention sinks: how much of every head's attention goes to the first tokens and to massive ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.outliers.measure.block_view import BlockCapture

FIRST = 4  # leading positions reported one by one
QUERIES = 128  # sampled per window, evenly spaced
SKIPPED = 8  # queries in the first 1/8 of a window are skipped: few keys precede them
MASKED_BELOW = -1e30  # an additive mask hides keys with values below


def sampled_attention(capture: BlockCapture) -> tuple[Tensor, Tensor]:
    """Attention probabilities float32 [heads, q, S] of sampled queries, and their positions int64 [q]."""
    assert capture.query is not None
    assert capture.key is not None
    length = capture.query.shape[1]
    first = max(FIRST, length // SKIPPED)
    positions = torch.unique(torch.linspace(min(first, length - 1), length - 1, min(QUERIES, length)).long())
    query = capture.query[:, positions].float()
    key = capture.key.float().repeat_interleave(len(query) // len(capture.key), dim=0)
    scores = query @ key.transpose(1, 2) * capture.scale
    if capture.mask is not None:
        mask = capture.mask[:, positions, :length]
        hidden = ~mask if mask.dtype == torch.bool else mask < MASKED_BELOW
        scores.masked_fill_(hidden.expand_as(scores), -torch.inf)
    else:
        later = torch.arange(length)[None, :] > positions[:, None]
        scores.masked_fill_(later[None], -torch.inf)
    return scores.softmax(-1), positions


class SinkMeter:
    """Means over windows for one layer."""

    def __init__(self, heads: int) -> None:
        self.first = torch.zeros(heads, FIRST, dtype=torch.float64)
        self.massive = torch.zeros(heads, dtype=torch.float64)
        self.peak = torch.zeros(heads, dtype=torch.float64)
        self.uniform = 0.0
        self.windows = 0
        self.peak_positions: dict[int, int] = {}  # position -> heads and windows that attend most to it

    def add(self, capture: BlockCapture, massive: list[int]) -> None:
        """Add a window. massive: its positions that carry massive activations."""
        probabilities, positions = sampled_attention(capture)
        mean = probabilities.double().mean(1)  # over queries: [heads, S]
        count = min(FIRST, mean.shape[1])
        self.first[:, :count] += mean[:, :count]
        if massive:
            self.massive += mean[:, massive].sum(1)
        top = mean.max(1)
        self.peak += top.values
        for position in top.indices.tolist():
            self.peak_positions[position] = self.peak_positions.get(position, 0) + 1
        self.uniform += float((1.0 / (positions + 1.0)).mean())
        self.windows += 1

    def result(self) -> dict[str, Any]:
        """JSON. Per head: attention on each of the first tokens, on massive tokens, on its favourite position;
        `uniform`: what evenly spread attention gives to one token."""
        n = max(self.windows, 1)
        counts = self.peak_positions
        favourite = max(counts, key=lambda position: (counts[position], -position)) if counts else 0
        return {
            "first": [[round(share, 5) for share in row] for row in (self.first / n).tolist()],
            "massive": [round(share, 5) for share in (self.massive / n).tolist()],
            "peak": [round(share, 5) for share in (self.peak / n).tolist()],
            "favourite_position": favourite,
            "uniform": self.uniform / n,
            "mean_first_token": float((self.first[:, 0] / n).mean()),
        }
