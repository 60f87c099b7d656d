"""How far a checkpoint's predictions are from a baseline's: KL divergence and top-1 agreement per window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import MismatchError
from dfrot.evaluate.ppl import logit_chunks


@dataclass(frozen=True)
class WindowAgreement:
    """Per window, float64 [n]: kl, mean KL(baseline || model) in nats per token; top1, share of equal argmax."""

    kl: Tensor
    top1: Tensor


class Baseline:
    """The final hidden states of a baseline checkpoint over all windows: its logits without running it again.

    Memory: windows x seqlen x hidden elements in the model's dtype (2.7 GB for WikiText-2 on an 8B model)."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.hidden: dict[int, Tensor] = {}

    def record(self, first: int, hidden: Tensor) -> None:
        """The `observe` callback of `window_losses` while the baseline runs."""
        for row, states in enumerate(hidden):
            self.hidden[first + row] = states.cpu()

    def finish(self) -> None:
        """Keep the head only."""
        self.model = _Head(self.model)

    def states(self, first: int, count: int, device: torch.device) -> Tensor:
        try:
            return torch.stack([self.hidden[first + row] for row in range(count)]).to(device)
        except KeyError:
            raise MismatchError(f"window {first}: the baseline was not evaluated on it; use the same windows") from None


class _Head:
    """The part of a model that `logit_chunks` needs."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self._head = model.get_output_embeddings()

    def get_output_embeddings(self) -> Any:
        return self._head


def agreement_observer(
    model: Any, baseline: Baseline, windows: int
) -> tuple[Callable[[int, Tensor], None], WindowAgreement]:
    """An `observe` callback for `window_losses` on `model`, and the result that it fills in."""
    result = WindowAgreement(torch.zeros(windows, dtype=torch.float64), torch.zeros(windows, dtype=torch.float64))

    def observe(first: int, hidden: Tensor) -> None:
        reference = baseline.states(first, len(hidden), hidden.device)
        positions = hidden.shape[1] - 1  # the protocol's targets
        kl = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
        same = torch.zeros_like(kl)
        pairs = zip(logit_chunks(baseline.model, reference[:, :-1]), logit_chunks(model, hidden[:, :-1]))
        for (_, _, expected), (_, _, got) in pairs:
            same += (expected.argmax(-1) == got.argmax(-1)).double().sum(-1)
            p, q = expected.log_softmax(-1), got.log_softmax(-1)
            kl += (p.exp() * (p - q)).sum(-1).double().sum(-1)
        result.kl[first : first + len(hidden)] = (kl / positions).cpu()
        result.top1[first : first + len(hidden)] = (same / positions).cpu()

    return observe, result
