"""Generation speed, for tables: greedy decoding of one sequence after a short prompt."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

DISTINCT_TOKENS = 97  # ids that the prompt cycles through


@torch.inference_mode()
def decode_speed(model: Any, tokenizer: Any, tokens: int = 64, prompt: int = 32, repeats: int = 3) -> float:
    """Tokens per second of greedy decoding with the cache, prefill excluded; the best of `repeats` runs.

    tokens: decoded per run; prompt: its length in tokens (its content does not matter for the speed)."""
    start = getattr(tokenizer, "bos_token_id", None) or 0
    last = model.config.get_text_config().vocab_size - 1
    ids = (torch.arange(prompt) % DISTINCT_TOKENS + start).clamp(max=last)[None].to(model.device)
    best = 0.0
    for _ in range(repeats):
        best = max(best, tokens / _decode_seconds(model, ids, tokens))
    return best


def greedy_ids(logits: Tensor) -> Tensor:
    """The likeliest next tokens int64 [B, 1], from logits [B, S, V] in any dtype."""
    return logits[:, -1:].float().argmax(-1)  # of bfloat16 it takes six times as long


def _decode_seconds(model: Any, ids: Tensor, tokens: int) -> float:
    """Seconds for `tokens` decoding steps behind the prompt `ids` int64 [1, S]."""
    out = model(ids, use_cache=True, logits_to_keep=1)
    begin = time.perf_counter()
    for _ in range(tokens):
        next_id = greedy_ids(out.logits)
        out = model(next_id, past_key_values=out.past_key_values, use_cache=True)
    out.logits.sum().item()  # waits for an asynchronous device
    return time.perf_counter() - begin
