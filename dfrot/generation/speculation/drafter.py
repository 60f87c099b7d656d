"""What speculative decoding needs of a draft: the interface that the decoding loop is written against.

The loop does not know which model proposes tokens. `dfrot/draft` implements this interface; plain decoding uses none
of it. Shapes: m new positions, k draft tokens, d the target's embedding width, f the width of its features, V the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from dfrot.generation.speculation.acceptance_rates import AcceptanceRates
from dfrot.generation.target import Target

LogitsFunction = Callable[[Tensor], Tensor]
"""Outputs of a draft [k, d] -> logits [k, N] of the tokens that it can propose."""


class DraftState(Protocol):
    """The draft's cache for one sequence: verified positions first, the nodes of the current draft tree behind them.

    Nodes are numbered from 0 in the order in which `grow` adds them. The root is the last verified position and has
    the number -1.
    """

    @property
    def whole_blocks(self) -> bool:
        """Whether `extend` returns the outputs of all draft tokens at once, so that `grow` is not called."""
        ...

    def extend(self, embeddings: Tensor, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """Append verified positions and drop all draft nodes.

        Args:
            embeddings: [m, d] of the tokens behind the root.
            features: [m', f] of the positions whose features became known since the last call, so that all positions
                below the last new one are known.
            positions: int64 [m], rising, where some positions are left out of the draft's cache; None for consecutive.

        Returns:
            The output [1, d] of the last new position, which is the root from now on; with `whole_blocks` those
            [n, d] of n draft tokens behind it, row k of the token k + 1 positions behind the root.
        """
        ...

    def grow(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        """Append draft nodes with the embeddings [k, d] of their tokens. parents: the root (-1) or nodes of earlier
        calls. Returns the outputs [k, d] of the new nodes."""
        ...

    def mark(self) -> tuple[int, ...]:
        """The current end of the verified positions, for `back`."""
        ...

    def back(self, mark: tuple[int, ...]) -> None:
        """Drop the verified positions behind `mark`. The root is gone with them: `extend` must be the next call."""
        ...


class Drafter(Protocol):
    """A loaded draft, ready to propose tokens for one target."""

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Target layers (counted from 1) whose outputs are the draft's features; empty: the final norm's output."""
        ...

    @property
    def token_ids(self) -> Tensor | None:
        """int64 [N], rising: the tokens that the draft can propose; None for the whole vocabulary."""
        ...

    @property
    def max_depth(self) -> int | None:
        """Levels of draft tokens that a round can have at most; None for any number."""
        ...

    @property
    def rates(self) -> AcceptanceRates | None:
        """Acceptance rates measured on held-out samples; None where no record has them."""
        ...

    def begin(self, capacity: int) -> DraftState:
        """An empty state for a sequence of at most `capacity` positions, draft nodes included."""
        ...

    def proposal_logits(self, target: Target) -> LogitsFunction:
        """The function that maps outputs of the draft to the logits from which draft tokens are chosen."""
        ...
