"""Perplexity by the GPTQ protocol, the one behind the published WikiText-2 numbers.

The text is tokenized once (the tokenizer's default BOS once at the very start) and cut into `tokens // seqlen`
windows without overlap, the tail dropped. Perplexity is exp of the mean over windows of each window's mean
cross-entropy over seqlen - 1 targets. Logits are in the model's dtype, only the loss is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import GateError
from dfrot.evaluate.intervals import perplexity_interval

PROTOCOL = "gptq-ppl/1"
LOGIT_BYTES = 1 << 26  # float32 logits held at a time: bounds memory whatever the vocabulary


def hidden_states(model: Any, tokens: Tensor) -> Tensor:
    """The head's input [B, S, hidden] for tokens int64 [B, S]."""
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def logit_chunks(model: Any, hidden: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(begin, end, float32 logits [B, end - begin, vocab]) over the positions of hidden [B, S, hidden].

    The head runs in the model's dtype, the loss in float32. Caps and divisors of logits are applied."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    divisor = getattr(config, "logits_scaling", None) or 1.0
    step = max(1, LOGIT_BYTES // (4 * config.vocab_size * hidden.shape[0]))
    for begin in range(0, hidden.shape[1], step):
        end = min(begin + step, hidden.shape[1])
        logits = head(hidden[:, begin:end])
        if divisor != 1.0:
            logits = logits / divisor
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        yield begin, end, logits.float()


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy float32 [B, S] of logits [B, S, vocab]."""
    return torch.logsumexp(logits, -1) - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


@torch.inference_mode()
def window_losses(
    model: Any,
    windows: Tensor,
    batch: int = 4,
    progress: Callable[[int], None] | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
    skip: int = 0,
) -> Tensor:
    """Mean negative log-likelihood per window, float64 [n], of windows int64 [n, seqlen].

    Args:
        model: a transformers causal language model.
        windows: int64 [n, seqlen].
        batch: windows per forward pass.
        progress: `progress(done)`, called after each batch.
        observe: `observe(first window, hidden [B, seqlen, d])`, called with the head's input.
        skip: leading tokens that are context only: neither they nor the first token behind them are predicted.

    Raises GateError when a window's loss is not a number."""
    losses = []
    device = model.device
    for first in range(0, len(windows), batch):
        tokens = windows[first : first + batch].to(device)
        hidden = hidden_states(model, tokens)
        if observe is not None:
            observe(first, hidden)
        total = torch.zeros(len(tokens), dtype=torch.float64, device=device)
        for begin, end, logits in logit_chunks(model, hidden[:, skip:-1]):
            total += token_losses(logits, tokens[:, skip + begin + 1 : skip + end + 1]).double().sum(-1)
        losses.append(total.cpu() / (windows.shape[1] - skip - 1))
        if progress is not None:
            progress(min(first + batch, len(windows)))
    result = torch.cat(losses)
    if not bool(torch.isfinite(result).all()):
        window = int((~torch.isfinite(result)).nonzero()[0])
        raise GateError(f"window {window}: the loss is not finite; the checkpoint's numbers are broken in this dtype")
    return result


def perplexity(model: Any, windows: Tensor, batch: int = 4) -> float:
    """Perplexity of windows int64 [n, seqlen] (see `window_losses`)."""
    return perplexity_interval(window_losses(model, windows, batch))[0]
