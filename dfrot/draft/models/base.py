"""What every draft architecture offers to training and to decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.rotary import Rotary
from dfrot.draft.models.state import DraftState

if TYPE_CHECKING:
    from dfrot.generation.acceptance_rates import AcceptanceRates

Head = Callable[[Tensor], Tensor]
"""Post-norm features [..., d] -> logits [..., vocabulary] of the target, differentiable."""


@dataclass
class TrainOutput:
    """outputs: per step of the training-time test [B, n, d]. mid: what imitates the intermediate feature, or None."""

    outputs: list[Tensor]
    mid: Tensor | None


class Draft(nn.Module, ABC):
    """Base of the drafts. Embedding and head belong to the target and are handed in, never copied. rates: how often
    guesses stood on held-out samples, where a record says so."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        self.rotary = Rotary(config)
        self.rates: AcceptanceRates | None = None

    def initialise(self) -> None:
        """Linears normal with 1 / sqrt(inputs), smaller where they write to the residual stream."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes = name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(module.weight, std=module.in_features**-0.5 * (0.3 if writes else 1.0))

    @abstractmethod
    def train_forward(self, embeddings: Tensor, positions: Tensor, features: Tensor, steps: int) -> TrainOutput:
        """All slots at once, for steps 0 .. `steps` of the training-time test.

        embeddings [B, n, d] and positions int64 [B, n] of the slots that are kept; features [B, S, f] of every
        position. outputs[t] at position P is what drafting gives there when its root is P - t.
        """

    @abstractmethod
    def logits(self, output: Tensor, head: Head) -> Tensor:
        """Outputs [..., d] -> logits [..., vocabulary]."""

    @abstractmethod
    def begin(self, capacity: int) -> DraftState:
        """An empty decoding state for one sequence of at most `capacity` slots, drafted ones included."""

    def count(self) -> int:
        """Parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
