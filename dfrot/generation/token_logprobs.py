"""The model's own log-probabilities of new tokens, before penalties, biases and temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOP = 20  # likeliest tokens per position


@dataclass(frozen=True)
class TokenLogprob:
    """One new token and what else was likely in its place."""

    token: int
    """Token id."""
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...]
    """(token id, logprob) of the likeliest tokens, in order."""


class LogprobRecorder:
    """Collects a `TokenLogprob` per new token."""

    def __init__(self, top: int) -> None:
        """top: how many of the likeliest tokens to keep."""
        self.top = top
        self.entries: list[TokenLogprob] = []

    def __call__(self, logits: Tensor, token: int) -> None:
        """Record `token`, picked from logits [V]."""
        logprobs = logits.float().log_softmax(-1)
        values, ids = logprobs.topk(min(self.top, len(logprobs)))
        self.entries.append(TokenLogprob(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist()))))
