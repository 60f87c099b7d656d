"""The loss of a window from its final hidden states, with the head read in parts: no [S, vocab] tensor exists."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.runtime.block_runner import BlockRunner


@torch.no_grad()
def window_nll(runner: BlockRunner, hidden: Tensor, tokens: Tensor) -> float:
    """Mean negative log-likelihood of tokens int64 [S] from hidden [S, d] behind the last block: S - 1 targets."""
    normed, targets = runner.normed(hidden)[:-1], tokens[1:]
    log_sum = torch.full((len(targets),), -torch.inf, dtype=torch.float64)
    target_logits = torch.zeros(len(targets), dtype=torch.float64)
    name = f"{runner.arch.spec.head.name}.bias"
    bias = runner.checkpoint.read(name).to(runner.dtype) if name in runner.checkpoint else None
    begin = 0
    for part in runner.head_rows():
        logits = normed @ part.to(runner.dtype).T
        if bias is not None:
            logits = logits + bias[begin : begin + len(part)]
        logits = logits / runner.arch.scalar("logits")
        log_sum = torch.logaddexp(log_sum, logits.double().logsumexp(-1))
        inside = (targets >= begin) & (targets < begin + len(part))
        target_logits[inside] = logits[inside, targets[inside] - begin].double()
        begin += len(part)
    return float((log_sum - target_logits).mean())
