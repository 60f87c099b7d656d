"""How far a checkpoint's predictions are from a baseline's, token by token: what a mean does not show.

Perplexity can stay while predictions change (errors that cancel); the divergence from the original model cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.evaluate.intervals import mean_interval
from dfrot.evaluate.logits import Baseline
from dfrot.evaluate.ppl import logit_chunks
from dfrot.evaluate.settings import LEVEL

QUANTILES = (0.5, 0.9, 0.99, 0.999)


@dataclass
class TokenDivergence:
    """Per window and position [n, seqlen - 1], float32: kl, KL(baseline || model) in nats; same, whether both take the
    same argmax; change, of the probability of the token that stands in the text."""

    kl: Tensor
    same: Tensor
    change: Tensor

    @classmethod
    def empty(cls, windows: int, seqlen: int) -> TokenDivergence:
        return cls(*(torch.zeros(windows, seqlen - 1) for _ in range(3)))

    def summary(self, level: float = LEVEL) -> dict[str, Any]:
        """Means with intervals over windows (tokens of a window depend on each other), quantiles over tokens."""
        mean, interval = mean_interval(self.kl.double().mean(-1), level)
        top, top_ci = mean_interval(self.same.double().mean(-1), level)
        ordered = self.kl.flatten().sort().values
        places = {q: int(q * (len(ordered) - 1)) for q in QUANTILES}
        return {
            "kl": mean,
            "kl_ci": None if interval is None else list(interval),
            "top1": top,
            "top1_ci": None if top_ci is None else list(top_ci),
            "kl_quantiles": {str(q): float(ordered[place]) for q, place in places.items()},
            "kl_max": float(ordered[-1]),
            "probability_change_rms": float(self.change.double().square().mean().sqrt()),
            "probability_change_mean": float(self.change.double().mean()),
            "tokens": self.kl.numel(),
        }


def divergence_observer(
    model: Any, baseline: Baseline, windows: Tensor, found: TokenDivergence
) -> Callable[[int, Tensor], None]:
    """An `observe` callback for `window_losses` on `model` that fills `found`. windows: int64 [n, seqlen]."""

    def observe(first: int, hidden: Tensor) -> None:
        rows = slice(first, first + len(hidden))
        targets = windows[rows, 1:].to(hidden.device)
        reference = baseline.states(first, len(hidden), hidden.device)
        pairs = zip(logit_chunks(baseline.model, reference[:, :-1]), logit_chunks(model, hidden[:, :-1]))
        for (begin, end, expected), (_, _, got) in pairs:
            found.same[rows, begin:end] = (expected.argmax(-1) == got.argmax(-1)).float().cpu()
            p, q = expected.log_softmax(-1), got.log_softmax(-1)
            found.kl[rows, begin:end] = (p.exp() * (p - q)).sum(-1).cpu()
            token = targets[:, begin:end, None]
            found.change[rows, begin:end] = (q.gather(-1, token).exp() - p.gather(-1, token).exp())[..., 0].cpu()

    return observe
