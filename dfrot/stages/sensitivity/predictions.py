"""What variants predict beside the exact model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import GateError
from dfrot.evaluate.intervals import as_list, mean_interval, perplexity_interval, ratio_interval
from dfrot.quant.activations import fake_quantize
from dfrot.quant.rounding import rtn
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.softcap import softcap_of

CHUNK_BYTES = 1 << 24  # float32 logits of a chunk: small enough to stay near the processor


@dataclass(frozen=True)
class Positions:
    """The predictions that are compared."""

    window: Tensor
    """int64 [n]: their windows, ascending."""
    index: Tensor
    """int64 [n]: their positions; the token behind is predicted."""
    target: Tensor
    """int64 [n]: the tokens that follow in the text."""

    @classmethod
    def of(cls, tokens: Tensor, count: int) -> Positions:
        """`count` predictions in tokens int64 [B, S], evenly spaced (0: all), at least one per window."""
        windows, per_window = tokens.shape[0], tokens.shape[1] - 1
        chosen = per_window if count == 0 else min(per_window, max(1, count // windows))
        places = torch.linspace(0, per_window - 1, chosen).round().long()
        index = places.repeat(windows)
        window = torch.arange(windows).repeat_interleave(len(places))
        return cls(window, index, tokens[window, index + 1])

    def of_states(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, d] -> [n, d]."""
        return hidden[self.window, self.index]

    def by_window(self, values: Tensor) -> Tensor:
        """values [n] -> float64 [B]: their mean in every window."""
        return values.double().view(int(self.window[-1]) + 1, -1).mean(1)


@dataclass(frozen=True)
class Predictions:
    """How one variant predicts, per window."""

    nll: Tensor
    """float64 [B]: mean loss."""
    kl: Tensor
    """float64 [B]: mean KL(exact || variant) in nats per token."""
    top1: Tensor
    """float64 [B]: share of positions with the exact model's most likely token."""

    def summary(self, exact: Tensor) -> dict[str, Any]:
        """JSON. exact: the loss per window of the exact model. Raises GateError for a loss that is not a number."""
        if not bool(torch.isfinite(self.nll).all()):
            raise GateError("the loss of a variant is not finite; the checkpoint's numbers are broken in float32")
        perplexity, _ = perplexity_interval(self.nll)
        ratio, ratio_ci = ratio_interval(self.nll, exact)
        kl, kl_ci = mean_interval(self.kl)
        return {
            "perplexity": perplexity,
            "ratio": ratio,
            "ratio_ci": as_list(ratio_ci),
            "kl": kl,
            "kl_ci": as_list(kl_ci),
            "top1": float(self.top1.mean()),
        }


class Predictor:
    """Final norm and head of a checkpoint, compared with its own exact predictions."""

    def __init__(self, runner: BlockRunner, scheme: QuantScheme, options: AlgorithmOptions, exact: Tensor) -> None:
        """exact: the exact model's hidden states [n, d] behind the last block, at the positions that are compared."""
        self.runner, self.scheme = runner, scheme
        self.weight = torch.cat([rows.to(runner.dtype) for rows in runner.head_rows()])
        self.options = options
        bias = f"{runner.arch.spec.head.name}.bias"
        self.bias = runner.checkpoint.read(bias).to(runner.dtype) if bias in runner.checkpoint else None
        self.cap = softcap_of(runner.config, runner.arch, "logits")
        self.exact = runner.normed(exact)

    def rounded_weight(self) -> Tensor:
        """The head's weight, rounded."""
        return rtn.quantize(self.weight, None, self.scheme, self.options).dequantize().to(self.weight.dtype)

    @torch.no_grad()
    def compare(
        self, states: Tensor, positions: Positions, *, weight: Tensor | None = None, round_input: bool = False
    ) -> Predictions:
        """Predictions from states [n, d] of a variant. weight: in place of the head's; round_input: round what it
        reads."""
        normed = self.runner.normed(states)
        if round_input:
            normed = fake_quantize(normed, self.scheme.a_bits, self.scheme.a_sym, self.scheme.a_clip)
        step = max(1, CHUNK_BYTES // (4 * len(self.weight)))
        nll, kl, same = (torch.empty(len(normed)) for _ in range(3))
        for begin in range(0, len(normed), step):
            rows = slice(begin, begin + step)
            reference = self._logits(self.exact[rows], self.weight)
            logits = self._logits(normed[rows], self.weight if weight is None else weight)
            same[rows] = (reference.argmax(-1) == logits.argmax(-1)).float()
            log_reference, log_probabilities = reference.log_softmax(-1), logits.log_softmax(-1)
            nll[rows] = -log_probabilities.gather(-1, positions.target[rows, None])[:, 0]
            kl[rows] = (log_reference.exp() * (log_reference - log_probabilities)).sum(-1)
        return Predictions(*(positions.by_window(values) for values in (nll, kl, same)))

    def _logits(self, normed: Tensor, weight: Tensor) -> Tensor:
        """float32 [n, vocab]."""
        logits = torch.nn.functional.linear(normed, weight, self.bias)
        divisor = self.runner.arch.scalar("logits")
        logits = logits if divisor == 1 else logits / divisor
        return (logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap).float()
