"""dfq's own model, as `dfq bench generate` times it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.bench.models.peer import PREFIX, prompt


class DfqRunner:
    """A dfq checkpoint, loaded as users do, through transformers."""

    def __init__(self, folder: Path) -> None:
        from dfrot.runtime.load import load_model

        self.model: Any = load_model(folder)
        self.vocab = int(self.model.config.get_text_config().vocab_size)
        self.out: Any = None

    @torch.inference_mode()
    def prefill(self, count: int) -> None:
        self.model(torch.tensor([prompt(count, self.vocab)]), use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def start(self) -> None:
        self.out = self.model(torch.tensor([prompt(PREFIX, self.vocab)]), use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def decode(self, count: int) -> None:
        for _ in range(count):
            following = self.out.logits[:, -1:].argmax(-1)
            self.out = self.model(following, past_key_values=self.out.past_key_values, use_cache=True)
