"""The EAGLE-3 baseline (arXiv 2503.01840): three fused target features, one decoder layer, a head of its own.

Slot p reads [norm(embedding of token p), norm(fc(features of p - 1))] and predicts token p + 1. Draft nodes read the
draft's own output of their parent, before its norm, in place of the fused feature. Tensor names are those that serving
engines expect of such a checkpoint.
"""

from __future__ import annotations

from torch import Tensor

from dfrot.draft.models.attention import attend_with_diagonals
from dfrot.draft.models.base import Head, TrainOutput
from dfrot.draft.models.eagle3_network import Eagle3Network
from dfrot.draft.models.eagle3_state import Eagle3State
from dfrot.draft.models.native_pass import few_rows
from dfrot.draft.models.ttt_masks import TTTSlots
from dfrot.generation.target import Target


class Eagle3Draft(Eagle3Network):
    """The network with training and decoding."""

    def proposal_logits(self, target: Target) -> Head:
        """The function from outputs [k, d] to the logits [k, N] from which draft tokens are chosen: the own head."""
        return lambda output: few_rows(self.lm_head, self.norm(output))

    def begin(self, capacity: int) -> Eagle3State:
        """An empty decoding state for a sequence of at most `capacity` slots, draft nodes included."""
        return Eagle3State(self, capacity)

    def train_forward(
        self, embeddings: Tensor, positions: Tensor, features: Tensor, steps: int, roots: Tensor | None = None
    ) -> TrainOutput:
        """See `Draft.train_forward`. From step 1 on the draft's outputs of the step before take the place of the fused
        features."""
        slots = TTTSlots(positions, features.shape[1])
        before = (positions - 1).clamp(min=0)[..., None]
        fused = self.fc(features).gather(1, before.expand(-1, -1, self.config.hidden_size))
        hidden = fused * (positions > 0)[..., None]  # nothing comes before the first token
        attention = self.layer.self_attn
        store: list[tuple[Tensor, Tensor]] = []
        outputs: list[Tensor] = []
        for t in range(steps + 1):
            if t:
                hidden = slots.shifted(outputs[-1])
            x = self.layer.inputs(embeddings, hidden)
            q = self.rotary(attention.queries(x), positions)
            k, v = attention.keys_values(x)
            store.append((self.rotary(k, positions), v))
            diagonals = [slots.diagonal(*store[r], t - r) for r in range(1, t + 1)]
            mixed = attend_with_diagonals(q, *store[0], slots.causal(t), diagonals)
            outputs.append(self.layer.finish(hidden, mixed))
        return TrainOutput(outputs, None)
