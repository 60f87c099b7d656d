"""Attention sinks: how much of every head's attention goes to the first tokens and to massive ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.outliers.measure.block_view import BlockCapture

FIRST = 4  # leading positions told one by one
QUERIES = 128  # per window, evenly spaced behind the first eighth


def sampled_attention(view: BlockCapture) -> tuple[Tensor, Tensor]:
    """Probabilities float32 [heads, q, S] of sampled queries, and their positions int64 [q]."""
    assert view.query is not None
    assert view.key is not None
    length = view.query.shape[1]
    first = max(FIRST, length // 8)
    picked = torch.unique(torch.linspace(min(first, length - 1), length - 1, min(QUERIES, length)).long())
    query = view.query[:, picked].float()
    key = view.key.float().repeat_interleave(len(query) // len(view.key), dim=0)
    scores = query @ key.transpose(1, 2) * view.scale
    if view.mask is not None:
        mask = view.mask[:, picked, :length]
        hidden = ~mask if mask.dtype == torch.bool else mask < -1e30
        scores.masked_fill_(hidden.expand_as(scores), -torch.inf)
    else:
        later = torch.arange(length)[None, :] > picked[:, None]
        scores.masked_fill_(later[None], -torch.inf)
    return scores.softmax(-1), picked


class SinkMeter:
    """Means over windows for one layer."""

    def __init__(self, heads: int) -> None:
        self.first = torch.zeros(heads, FIRST, dtype=torch.float64)
        self.massive = torch.zeros(heads, dtype=torch.float64)
        self.peak = torch.zeros(heads, dtype=torch.float64)
        self.even = 0.0
        self.windows = 0
        self.places: dict[int, int] = {}

    def add(self, view: BlockCapture, massive: list[int]) -> None:
        """`massive`: positions of this window that carry massive activations."""
        mass, picked = sampled_attention(view)
        mean = mass.double().mean(1)
        count = min(FIRST, mean.shape[1])
        self.first[:, :count] += mean[:, :count]
        if massive:
            self.massive += mean[:, massive].sum(1)
        top = mean.max(1)
        self.peak += top.values
        for place in top.indices.tolist():
            self.places[place] = self.places.get(place, 0) + 1
        self.even += float((1.0 / (picked + 1.0)).mean())
        self.windows += 1

    def result(self) -> dict[str, Any]:
        """Per head: mass on each of the first tokens, on massive tokens, on its favourite position; `uniform`: what
        attention that spreads evenly gives to one token."""
        n = max(self.windows, 1)
        favourite = max(self.places, key=lambda p: (self.places[p], -p)) if self.places else 0
        return {
            "first": [[round(v, 5) for v in row] for row in (self.first / n).tolist()],
            "massive": [round(v, 5) for v in (self.massive / n).tolist()],
            "peak": [round(v, 5) for v in (self.peak / n).tolist()],
            "favourite_position": favourite,
            "uniform": self.even / n,
            "mean_first_token": float((self.first[:, 0] / n).mean()),
        }
