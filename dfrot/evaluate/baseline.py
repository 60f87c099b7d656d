"""The baseline of a comparison: its final hidden states, from which logits are made again tile by tile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.errors import MismatchError


class Baseline:
    """The final hidden states of a baseline checkpoint over all windows: its logits without running it again.

    Memory: windows x seqlen x hidden elements in the model's dtype (2.7 GB for WikiText-2 on an 8B model)."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.hidden: dict[int, Tensor] = {}

    def record(self, first: int, hidden: Tensor) -> None:
        """The `observe` callback of `window_losses` while the baseline runs."""
        for row, states in enumerate(hidden):
            self.hidden[first + row] = states.cpu()

    def finish(self) -> None:
        """Release the model, except for its head."""
        self.model = _Head(self.model)

    def states(self, first: int, count: int, device: torch.device) -> Tensor:
        """Hidden states [count, seqlen, hidden] of windows first .. first + count, on `device`.

        Raises MismatchError for a window that the baseline was not run on."""
        try:
            return torch.stack([self.hidden[first + row] for row in range(count)]).to(device)
        except KeyError:
            raise MismatchError(f"window {first}: the baseline was not evaluated on it; use the same windows") from None


class _Head:
    """The part of a model that `TiledHead` needs."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self._head = model.get_output_embeddings()

    def get_output_embeddings(self) -> Any:
        return self._head
