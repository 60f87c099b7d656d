"""dfq's own models as runners of the bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.bench.models.peer import PREFIX, prompt_tokens
from dfrot.evaluate.speed import greedy_ids


class DfqRunner:
    """A dfq checkpoint, loaded through transformers as users do. A `peer.Runner`."""

    def __init__(self, folder: Path) -> None:
        from dfrot.runtime.load import load_model

        self.model: Any = load_model(folder)
        self.vocab = int(self.model.config.get_text_config().vocab_size)
        self.out: Any = None

    @torch.inference_mode()
    def prefill(self, count: int) -> None:
        """Run a prompt of `count` tokens."""
        self.model(torch.tensor([prompt_tokens(count, self.vocab)]), use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def start(self) -> None:
        """Run a prompt of PREFIX tokens and keep its cache."""
        self.out = self.model(torch.tensor([prompt_tokens(PREFIX, self.vocab)]), use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def decode(self, count: int) -> None:
        """Generate `count` greedy tokens behind what ran before."""
        for _ in range(count):
            token = greedy_ids(self.out.logits)
            self.out = self.model(token, past_key_values=self.out.past_key_values, use_cache=True)
