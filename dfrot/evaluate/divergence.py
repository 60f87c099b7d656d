"""How far a checkpoint's predictions are from a baseline's: per window (`WindowAgreement`) or per token
(`TokenDivergence`).

Perplexity can stay while predictions change (errors that cancel); the divergence from the baseline cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import MismatchError
from dfrot.evaluate.baseline import Baseline
from dfrot.evaluate.intervals import as_list, mean_interval
from dfrot.evaluate.logits import LikeliestTokens, RunningLogSumExp, TiledHead, TokenLogits
from dfrot.evaluate.settings import LEVEL
from dfrot.ranks.single import Ranks

QUANTILES = (0.5, 0.9, 0.99, 0.999)
Observe = Callable[[int, Tensor], None]
"""`observe(first window, hidden [B, seqlen, d])`: the callback of `window_losses`."""


class _Prediction:
    """What is kept of one model's logits for M rows."""

    def __init__(self, targets: Tensor) -> None:
        """targets: int64 [M], the tokens that follow in the text."""
        self.total = RunningLogSumExp(len(targets), targets.device)
        self.target, self.likeliest = TokenLogits(targets), LikeliestTokens(len(targets), targets.device)

    def add(self, begin: int, tile: Tensor) -> tuple[Tensor, Tensor]:
        """tile: the logits of ids begin .. begin + n; returns what `RunningLogSumExp.add` does."""
        self.target.add(begin, tile)
        self.likeliest.add(begin, tile)
        return self.total.add(tile)

    def probability(self) -> Tensor:
        """float64 [M]: of the token that follows."""
        return (self.target.values - self.total.value()).exp()


@dataclass(frozen=True)
class _PredictionPair:
    """Both models' predictions for M rows."""

    kl: Tensor
    """float64 [M]: KL(baseline || model) in nats."""
    same: Tensor
    """bool [M]: whether both models' most likely tokens are equal."""
    change: Tensor
    """float64 [M]: change of the probability of the token that follows in the text."""

    @classmethod
    def joined(cls, parts: Sequence[_PredictionPair], shape: Sequence[int]) -> _PredictionPair:
        """Parts behind one another, as tensors of `shape`."""
        return cls(
            *(
                torch.cat([getattr(part, field.name) for part in parts]).view(*shape)
                for field in fields(_PredictionPair)
            )
        )


def _compare(model: Any, baseline: Baseline, first: int, hidden: Tensor, windows: Tensor) -> _PredictionPair:
    """Both models' predictions [B, seqlen - 1] behind hidden [B, seqlen, d] of `model` (the last one has no target).

    first: number of the first window; windows: int64 [B, seqlen]. Raises MismatchError for other vocabularies."""
    heads = TiledHead(baseline.model), TiledHead(model)
    if heads[0].vocabulary != heads[1].vocabulary:
        raise MismatchError(
            f"vocabularies of {heads[0].vocabulary} and {heads[1].vocabulary} tokens: predictions cannot be compared"
        )
    step = min(head.rows for head in heads)
    reference = baseline.states(first, len(hidden), hidden.device)[:, :-1].flatten(0, 1)
    targets = windows[:, 1:].to(hidden.device)
    rows = zip(*(torch.split(part, step) for part in (reference, hidden[:, :-1].flatten(0, 1), targets.flatten())))
    return _PredictionPair.joined([_compare_rows(heads, *tile) for tile in rows], targets.shape)


def _compare_rows(
    heads: tuple[TiledHead, TiledHead], reference: Tensor, hidden: Tensor, targets: Tensor
) -> _PredictionPair:
    """Both models' predictions for M rows: the baseline's head on `reference` [M, d], the model's on hidden [M, d]."""
    expected, actual = _Prediction(targets), _Prediction(targets)
    weighted = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    for (begin, ours), (_, theirs) in zip(heads[0].tiles(reference), heads[1].tiles(hidden)):
        exponentials, factor = expected.add(begin, ours)
        actual.add(begin, theirs)
        # sum of exp(a - largest) (a - b), for logits a of the baseline and b of the model
        weighted = weighted.mul_(factor).add_(exponentials.mul_(ours.sub_(theirs)).sum(-1))
    kl = weighted / expected.total.total - expected.total.value() + actual.total.value()
    same = expected.likeliest.tokens == actual.likeliest.tokens
    return _PredictionPair(kl, same, actual.probability() - expected.probability())


@dataclass(frozen=True)
class WindowAgreement:
    """Agreement of two models per window."""

    kl: Tensor
    """float64 [n]: mean KL(baseline || model) in nats per token."""
    top1: Tensor
    """float64 [n]: share of positions where both take the same most likely token."""

    def filled(self, ranks: Ranks) -> WindowAgreement:
        """Of all windows, from what every rank observed."""
        return WindowAgreement(*ranks.filled(self.kl, self.top1))


def agreement_observer(model: Any, baseline: Baseline, windows: Tensor) -> tuple[Observe, WindowAgreement]:
    """An `observe` callback for `window_losses` on `model`, and the result that it fills in.

    windows: int64 [n, seqlen]."""
    result = WindowAgreement(*(torch.zeros(len(windows), dtype=torch.float64) for _ in range(2)))

    def observe(first: int, hidden: Tensor) -> None:
        rows = slice(first, first + len(hidden))
        compared = _compare(model, baseline, first, hidden, windows[rows])
        result.kl[rows] = compared.kl.mean(-1).cpu()
        result.top1[rows] = compared.same.double().mean(-1).cpu()

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

    def filled(self, ranks: Ranks) -> TokenDivergence:
        """Of all windows, from what every rank observed."""
        return TokenDivergence(*ranks.filled(self.kl, self.same, self.change))

    def summary(self, level: float = LEVEL) -> dict[str, Any]:
        """JSON: means with intervals over windows (tokens of a window depend on each other), quantiles over tokens."""
        mean, interval = mean_interval(self.kl.double().mean(-1), level)
        top1, top1_interval = mean_interval(self.same.double().mean(-1), level)
        ordered = self.kl.flatten().sort().values
        indices = {q: int(q * (len(ordered) - 1)) for q in QUANTILES}
        return {
            "kl": mean,
            "kl_ci": as_list(interval),
            "top1": top1,
            "top1_ci": as_list(top1_interval),
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
        compared = _compare(model, baseline, first, hidden, windows[rows])
        result.kl[rows], result.same[rows] = compared.kl.float().cpu(), compared.same.float().cpu()
        result.change[rows] = compared.change.float().cpu()

    return observe
