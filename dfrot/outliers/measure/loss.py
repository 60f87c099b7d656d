"""The loss of a window from its final hidden states, with the head streamed: no [S, vocab] tensor exists."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.runtime.block_runner import BlockRunner


@torch.no_grad()
def window_nll(runner: BlockRunner, hidden: Tensor, tokens: Tensor) -> float:
    """Mean negative log-likelihood of tokens int64 [S] from hidden [S, d] behind the last block: S - 1 targets."""
    normed, targets = runner.normed(hidden)[:-1], tokens[1:]
    total = torch.full((len(targets),), -torch.inf, dtype=torch.float64)
    wanted = torch.zeros(len(targets), dtype=torch.float64)
    name = f"{runner.arch.spec.head.name}.bias"
    bias = runner.checkpoint.read(name).to(runner.dtype) if name in runner.checkpoint else None
    begin = 0
    for part in runner.head_rows():
        logits = normed @ part.to(runner.dtype).T
        if bias is not None:
            logits = logits + bias[begin : begin + len(part)]
        logits = logits / runner.arch.scalar("logits")
        total = torch.logaddexp(total, logits.double().logsumexp(-1))
        inside = (targets >= begin) & (targets < begin + len(part))
        wanted[inside] = logits[inside, targets[inside] - begin].double()
        begin += len(part)
    return float((total - wanted).mean())
