"""Means of keys, from which the key shift is made."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.progress import Progress, silent
from dfrot.runtime.attention_hooks import AttentionCall, observe_block_attention
from dfrot.runtime.block_runner import BlockRunner

TOKENS = 4096
"""Tokens whose keys are averaged: a mean settles long before the moments that calibrations are made for."""


@torch.no_grad()
def key_means(runner: BlockRunner, tokens: Tensor, sink_tokens: int = 0, progress: Progress = silent) -> Tensor:
    """The mean key behind RoPE of every layer and head, float64 [layers, kv heads, head_dim].

    tokens int64 [samples, seqlen]: as many of the first windows are run, one at a time, as hold `TOKENS`.
    sink_tokens: leading positions that do not count, for they stay exact."""
    arch = runner.arch
    windows = tokens[: max(1, TOKENS // tokens.shape[1])]
    sink_tokens = min(sink_tokens, tokens.shape[1] - 1)
    hidden = [runner.embed(window[None]) for window in windows]
    means = torch.zeros(arch.n_layers, arch.n_kv_heads, arch.head_dim, dtype=torch.float64)
    for layer in range(arch.n_layers):
        progress("keys", layer, arch.n_layers)
        block = runner.block(layer)
        sums = means[layer]

        def add(call: AttentionCall, sums: Tensor = sums) -> None:
            sums += call.key[0, :, sink_tokens:].sum(1, dtype=torch.float64)

        with observe_block_attention(block, add):
            hidden = [runner.run(block, states) for states in hidden]
        del block
    progress("keys", arch.n_layers, arch.n_layers)
    return means / (len(windows) * (tokens.shape[1] - sink_tokens))
