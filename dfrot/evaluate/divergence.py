"""How far a checkpoint's predictions are from a baseline's: per window (`WindowAgreement`) or per token
(`TokenDivergence`).

Perplexity can stay while predictions change (errors that cancel); the divergence from the baseline cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.evaluate.baseline import Baseline
from dfrot.evaluate.intervals import mean_interval
from dfrot.evaluate.ppl import logit_chunks
from dfrot.evaluate.settings import LEVEL

QUANTILES = (0.5, 0.9, 0.99, 0.999)
Observe = Callable[[int, Tensor], None]
"""`observe(first window, hidden [B, seqlen, d])`: the callback of `window_losses`."""


@dataclass(frozen=True)
class _Chunk:
    """Both models' predictions at positions begin .. end of some windows."""

    begin: int
    end: int
    baseline: Tensor
    """Log-probabilities float32 [B, end - begin, vocab]."""
    model: Tensor
    """Log-probabilities float32 [B, end - begin, vocab]."""
    same_argmax: Tensor
    """bool [B, end - begin]: whether both models' most likely tokens are equal."""

    @property
    def kl(self) -> Tensor:
        """KL(baseline || model) in nats, float32 [B, end - begin]."""
        return (self.baseline.exp() * (self.baseline - self.model)).sum(-1)


def _chunks(model: Any, baseline: Baseline, first: int, hidden: Tensor) -> Iterator[_Chunk]:
    """Predictions of both models behind hidden [B, seqlen, d] of `model`, the last position left out: it has no
    target. first: number of the first window."""
    reference = baseline.states(first, len(hidden), hidden.device)
    pairs = zip(logit_chunks(baseline.model, reference[:, :-1]), logit_chunks(model, hidden[:, :-1]))
    for (begin, end, expected), (_, _, logits) in pairs:
        same = expected.argmax(-1) == logits.argmax(-1)
        yield _Chunk(begin, end, expected.log_softmax(-1), logits.log_softmax(-1), same)


@dataclass(frozen=True)
class WindowAgreement:
    """Agreement of two models per window."""

    kl: Tensor
    """float64 [n]: mean KL(baseline || model) in nats per token."""
    top1: Tensor
    """float64 [n]: share of positions where both take the same most likely token."""


def agreement_observer(model: Any, baseline: Baseline, windows: int) -> tuple[Observe, WindowAgreement]:
    """An `observe` callback for `window_losses` on `model`, and the result that it fills in."""
    result = WindowAgreement(torch.zeros(windows, dtype=torch.float64), torch.zeros(windows, dtype=torch.float64))

    def observe(first: int, hidden: Tensor) -> None:
        positions = hidden.shape[1] - 1  # the protocol's targets
        kl = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
        same = torch.zeros_like(kl)
        for chunk in _chunks(model, baseline, first, hidden):
            same += chunk.same_argmax.double().sum(-1)
            kl += chunk.kl.double().sum(-1)
        result.kl[first : first + len(hidden)] = (kl / positions).cpu()
        result.top1[first : first + len(hidden)] = (same / positions).cpu()

    return observe, result


@dataclass
class TokenDivergence:
    """Divergence of two models per window and position."""

    kl: Tensor
    """float32 [n, seqlen - 1]: KL(baseline || model) in nats."""
    same: Tensor
    """float32 [n, seqlen - 1]: 1 where both take the same most likely token, else 0."""
    change: Tensor
    """float32 [n, seqlen - 1]: change of the probability of the token that follows in the text."""

    @classmethod
    def empty(cls, windows: int, seqlen: int) -> TokenDivergence:
        """Zeros, for `divergence_observer` to fill in."""
        return cls(*(torch.zeros(windows, seqlen - 1) for _ in range(3)))

    def summary(self, level: float = LEVEL) -> dict[str, Any]:
        """JSON: means with intervals over windows (tokens of a window depend on each other), quantiles over tokens."""
        mean, interval = mean_interval(self.kl.double().mean(-1), level)
        top1, top1_interval = mean_interval(self.same.double().mean(-1), level)
        ordered = self.kl.flatten().sort().values
        indices = {q: int(q * (len(ordered) - 1)) for q in QUANTILES}
        return {
            "kl": mean,
            "kl_ci": None if interval is None else list(interval),
            "top1": top1,
            "top1_ci": None if top1_interval is None else list(top1_interval),
            "kl_quantiles": {str(q): float(ordered[index]) for q, index in indices.items()},
            "kl_max": float(ordered[-1]),
            "probability_change_rms": float(self.change.double().square().mean().sqrt()),
            "probability_change_mean": float(self.change.double().mean()),
            "tokens": self.kl.numel(),
        }


def divergence_observer(model: Any, baseline: Baseline, windows: Tensor, result: TokenDivergence) -> Observe:
    """An `observe` callback for `window_losses` on `model` that fills in `result`. windows: int64 [n, seqlen]."""

    def observe(first: int, hidden: Tensor) -> None:
        rows = slice(first, first + len(hidden))
        targets = windows[rows, 1:].to(hidden.device)
        for chunk in _chunks(model, baseline, first, hidden):
            positions = slice(chunk.begin, chunk.end)
            result.same[rows, positions] = chunk.same_argmax.float().cpu()
            result.kl[rows, positions] = chunk.kl.cpu()
            token = targets[:, positions, None]
            change = chunk.model.gather(-1, token).exp() - chunk.baseline.gather(-1, token).exp()
            result.change[rows, positions] = change[..., 0].cpu()

    return observe
