"""The base class of drafts: what every architecture offers to training and to decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.rotary import Rotary
from dfrot.draft.models.state import CachedDraftState
from dfrot.draft.proposal_head import proposal_head, trimmed_head
from dfrot.generation.speculation.acceptance_rates import AcceptanceRates
from dfrot.generation.target import Target
from dfrot.quant.modules.linear import QuantLinear

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
    reached: list[Tensor] | None = None
    """Per step bool [B, n]: positions that have an output, where only some roots were asked for; None for all."""


class Draft(nn.Module, ABC):
    """Implements `Drafter` (dfrot/generation/speculation/drafter.py). Embedding and head belong to the target: they are
    passed in, never copied."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        self.rotary = Rotary(config)
        self.rates: AcceptanceRates | None = None
        self.d2t: Tensor | None  # int64 [N]: the target's id minus the draft's, rising ids
        self.register_buffer("d2t", _first_ids(config.draft_vocab_size))
        self._proposals: tuple[Target, Head] | None = None  # the head of the last target, cut to the draft's vocabulary

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

    @property
    def max_depth(self) -> int | None:
        """Levels of draft tokens that a round can have at most; None for any number."""
        return None

    def training_steps(self, ttt_steps: int) -> int:
        """Steps behind the first that training computes, where the settings ask for `ttt_steps`."""
        return ttt_steps

    @abstractmethod
    def train_forward(
        self, embeddings: Tensor, positions: Tensor, features: Tensor, steps: int, roots: Tensor | None = None
    ) -> TrainOutput:
        """All slots at once, for the steps 0 .. `steps` of the training-time test.

        Args:
            embeddings: [B, n, d] of the tokens of the draft's slots.
            positions: int64 [B, n] of the slots, rising; positions may be left out.
            features: [B, S, f] of every position.
            steps: of the training-time test. outputs[t] at position P is what drafting computes there when its root is
                P - t.
            roots: bool [B, n], the slots that are roots, for drafts of whole blocks; None for all. Others compute all.
        """

    @abstractmethod
    def logits(self, output: Tensor, head: Head) -> Tensor:
        """Outputs [..., d] -> logits [..., N] of the tokens that the draft can propose. head: the target's, cut to them
        (`own_head`)."""

    def imitation(self, output: Tensor) -> Tensor:
        """Outputs [..., d] -> what imitates the target's feature behind the final norm, [..., d]."""
        return output

    @abstractmethod
    def begin(self, capacity: int) -> CachedDraftState:
        """An empty decoding state for a sequence of at most `capacity` slots, draft nodes included."""

    @property
    def token_ids(self) -> Tensor | None:
        """int64 [N], rising: the target's ids of the tokens that the draft can propose; None for all of them."""
        return None if self.d2t is None else self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def choose_tokens(self, ids: Tensor) -> None:
        """Let the draft propose these tokens only: int64 [N], rising, N as its config says."""
        assert self.d2t is not None
        self.d2t.copy_(ids - torch.arange(len(ids)))

    def own_head(self, head: Head) -> Head:
        """The target's head, its logits [..., V] cut to those [..., N] of the draft's tokens; differentiable."""
        ids = self.token_ids
        return head if ids is None else lambda features: head(features)[..., ids]

    def proposal_logits(self, target: Target) -> Callable[[Tensor], Tensor]:
        """The function from outputs [k, d] to the logits [k, N] from which draft tokens are chosen."""
        ids = self.token_ids
        if ids is None:
            head: Head = proposal_head(target, self)
        else:
            if self._proposals is None or self._proposals[0] is not target:
                self._proposals = (target, trimmed_head(target, self, ids))
            head = self._proposals[1]
        return lambda output: self.logits(output, head)

    def count(self) -> int:
        """Number of parameters, those of rounded linears included."""
        packed = [module.plan for module in self.modules() if isinstance(module, QuantLinear)]
        own = sum(parameter.numel() for parameter in self.parameters())
        return own + sum(plan.rows * plan.cols for plan in packed)


def _first_ids(count: int) -> Tensor | None:
    """`d2t` of the first `count` ids; None for 0."""
    return torch.zeros(count, dtype=torch.int64) if count else None
