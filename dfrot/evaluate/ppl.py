"""Perplexity by the GPTQ protocol, the one behind the published WikiText-2 numbers.

The text is tokenized once (the tokenizer's default BOS once at the very start) and cut into `tokens // seqlen`
windows without overlap, the tail dropped. Perplexity is exp of the mean over windows of each window's mean
cross-entropy over seqlen - 1 targets. Logits are in the model's dtype, only the loss is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.evaluate.logits import token_losses
from dfrot.ranks.single import SINGLE, Ranks

PROTOCOL = "gptq-ppl/1"


def hidden_states(model: Any, tokens: Tensor) -> Tensor:
    """The head's input [B, S, hidden] for tokens int64 [B, S]."""
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


@torch.inference_mode()
def window_losses(
    model: Any,
    windows: Tensor,
    batch: int = 4,
    progress: Callable[[int], None] | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
    skip: int = 0,
    ranks: Ranks = SINGLE,
) -> Tensor:
    """Mean negative log-likelihood per window, float64 [n], of windows int64 [n, seqlen].

    Args:
        model: a transformers causal language model.
        windows: int64 [n, seqlen].
        batch: windows per forward pass.
        progress: `progress(done)`, called after each batch.
        observe: `observe(first window, hidden [B, seqlen, d])`, called with the head's input.
        skip: leading tokens that are context only: neither they nor the first token behind them are predicted.
        ranks: share the batches; every rank gets all losses, but observes its own batches alone.

    Raises InputError when a window's loss is not a number."""
    result = torch.zeros(len(windows), dtype=torch.float64)
    device = model.device
    starts = range(0, len(windows), batch)
    for turn, number in enumerate(ranks.rounds(len(starts))):
        if number is not None:
            rows = slice(starts[number], starts[number] + batch)
            tokens = windows[rows].to(device)
            hidden = hidden_states(model, tokens)
            if observe is not None:
                observe(starts[number], hidden)
            targets = tokens[:, skip + 1 :]
            loss = token_losses(model, hidden[:, skip:-1].flatten(0, 1), targets.flatten())
            result[rows] = loss.view(targets.shape).mean(-1).cpu()
        if progress is not None:
            progress(min((turn + 1) * ranks.size * batch, len(windows)))
    whole: Tensor = ranks.filled(result)[0]
    if not bool(torch.isfinite(whole).all()):
        window = int((~torch.isfinite(whole)).nonzero()[0])
        raise InputError(
            f"window {window}: the loss is NaN or Inf: the checkpoint's weights are damaged, or its values overflow "
            "this data type; try `dtype=float32`",
            field="dtype",
        )
    return whole
