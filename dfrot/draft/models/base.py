"""The base class of drafts: what every architecture offers to training and to decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.rotary import Rotary
from dfrot.draft.models.state import CachedDraftState
from dfrot.draft.proposal_head import proposal_head
from dfrot.generation.speculation.acceptance_rates import AcceptanceRates
from dfrot.generation.target import Target

Head = Callable[[Tensor], Tensor]
"""The target's head: features behind the final norm [..., d] -> logits [..., V], differentiable."""

RESIDUAL_INIT = 0.3  # factor on the initial weights of linears that write to the residual stream


@dataclass
class TrainOutput:
    """What a draft computes of a training batch."""

    outputs: list[Tensor]
    """Per step of the training-time test, [B, n, d]."""
    mid: Tensor | None
    """What imitates the target's intermediate feature, [B, n, d]; None where the architecture has none."""


class Draft(nn.Module, ABC):
    """Implements `Drafter` (dfrot/generation/speculation/drafter.py). Embedding and head belong to the target: they are
    passed in, never copied."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        self.rotary = Rotary(config)
        self.rates: AcceptanceRates | None = None

    def initialise(self) -> None:
        """Normal weights with standard deviation 1 / sqrt(inputs), smaller where they write to the residual stream."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes = name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(module.weight, std=module.in_features**-0.5 * (RESIDUAL_INIT if writes else 1.0))

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Target layers whose outputs the draft reads; empty for the final norm's output."""
        return self.config.aux_layers

    @abstractmethod
    def train_forward(self, embeddings: Tensor, positions: Tensor, features: Tensor, steps: int) -> TrainOutput:
        """All slots at once, for the steps 0 .. `steps` of the training-time test.

        Args:
            embeddings: [B, n, d] of the tokens of the draft's slots.
            positions: int64 [B, n] of the slots, rising; positions may be left out.
            features: [B, S, f] of every position.
            steps: of the training-time test. outputs[t] at position P is what drafting computes there when its root is
                P - t.
        """

    @abstractmethod
    def logits(self, output: Tensor, head: Head) -> Tensor:
        """Outputs [..., d] -> logits [..., V]."""

    @abstractmethod
    def begin(self, capacity: int) -> CachedDraftState:
        """An empty decoding state for a sequence of at most `capacity` slots, draft nodes included."""

    def proposal_logits(self, target: Target) -> Callable[[Tensor], Tensor]:
        """The function from outputs [k, d] to the logits [k, V] from which draft tokens are chosen."""
        head = proposal_head(target, self)
        return lambda output: self.logits(output, head)

    def count(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
