"""What llama.cpp and its fork share: a context that decodes at most BATCH tokens at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

BATCH = 512  # llama.cpp's own default


class LlamaFamily(ABC):
    """An engine around the C interface `api`. context: of the model; batch: of `api.llama_batch_init(BATCH, 0, 1)`."""

    api: Any
    context: Any
    batch: Any
    position = 0

    @abstractmethod
    def _forget(self) -> None:
        """Empty the cache."""

    @abstractmethod
    def _logits(self, count: int, every: bool) -> Any:
        """Logits [n, V] of the last call of `count` tokens: of every row, or of the last alone."""

    def _clear(self) -> None:
        self._forget()
        self.position = 0

    def _decode(self, ids: list[int], every: bool) -> Any:
        """Run at most BATCH ids; logits [n, V] of every row, or of the last alone."""
        self.batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            self.batch.token[row] = token
            self.batch.pos[row] = self.position + row
            self.batch.n_seq_id[row] = 1
            self.batch.seq_id[row][0] = 0
            self.batch.logits[row] = every or row == len(ids) - 1
        if code := self.api.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode returned {code}")
        self.position += len(ids)
        return self._logits(len(ids), every)

    def prefill(self, ids: list[int]) -> int:
        """The greedy token behind a prompt."""
        self._clear()
        for start in range(0, len(ids), BATCH):
            logits = self._decode(ids[start : start + BATCH], every=False)
        return int(logits[0].argmax())

    def step(self, token: int) -> int:
        """The greedy token behind one more."""
        return int(self._decode([token], every=False)[0].argmax())

    def logits(self, ids: list[int]) -> Any:
        """Logits [n, V]."""
        self._clear()
        starts = range(0, len(ids), BATCH)
        return np.concatenate([self._decode(ids[start : start + BATCH], every=True).copy() for start in starts])
