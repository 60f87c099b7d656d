"""The EAGLE-3 baseline (arXiv 2503.01840): three fused target features, one decoder layer, a head of its own.

Slot p reads [norm(embedding of token p), norm(fc(features of p - 1))] and predicts token p + 1. Draft nodes read the
draft's own output of their parent, before its norm, in place of the fused feature. Tensor names are those that serving
engines expect of such a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfrot.draft.models.attention import attend, attend_with_diagonals
from dfrot.draft.models.base import Draft, Head, TrainOutput
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.layers import MLP, Projections, RMSNorm
from dfrot.draft.models.state import CachedDraftState, KeyValueBuffer, behind, causal_mask
from dfrot.draft.models.ttt_masks import TTTSlots


class FusedLayer(nn.Module):
    """A decoder layer whose attention reads embedding and feature side by side."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.input_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(size, config.rms_norm_eps)
        self.self_attn = Projections(config, 2 * size, 2 * size, size)
        self.post_attention_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.mlp = MLP(size, config.intermediate_size)

    def inputs(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """Embeddings and features [B, n, d] -> input of the attention [B, n, 2 d]."""
        return torch.cat([self.input_layernorm(embeddings), self.hidden_norm(hidden)], -1)

    def finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Features [B, n, d] and what attention gathered [B, H, n, D] -> output [B, n, d]."""
        h = hidden + self.self_attn.output(mixed)
        return h + self.mlp(self.post_attention_layernorm(h))  # type: ignore[no-any-return]


class Eagle3Draft(Draft):
    """Features are [.., 3 d], the outputs of `config.aux_layers`. Outputs are not normed; the head norms them."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.fc = nn.Linear(config.feature_size, size, bias=False)
        self.layers = nn.ModuleList([FusedLayer(config)])
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.lm_head = nn.Linear(size, config.proposed_size, bias=False)
        self.initialise()

    @property
    def layer(self) -> FusedLayer:
        """The decoder layer."""
        return self.layers[0]  # type: ignore[return-value]

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

    def logits(self, output: Tensor, head: Head) -> Tensor:
        """Outputs [..., d] -> logits [..., N], by the draft's own head."""
        return self.lm_head(self.norm(output))  # type: ignore[no-any-return]

    def begin(self, capacity: int) -> Eagle3State:
        """An empty decoding state for a sequence of at most `capacity` slots, draft nodes included."""
        return Eagle3State(self, capacity)


class Eagle3State(CachedDraftState):
    """The decoding state: one buffer of keys and values."""

    def __init__(self, draft: Eagle3Draft, capacity: int) -> None:
        super().__init__(capacity)
        self.draft = draft
        config, like = draft.config, draft.norm.weight
        self.buffer = KeyValueBuffer(config.num_key_value_heads, capacity, config.head_dim, like)

    def extend(self, embeddings: Tensor, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `DraftState.extend`."""
        count, old = len(embeddings), self.slots
        hidden = self.draft.fc(features.to(self.buffer.k.dtype))
        if old == 0:
            hidden = torch.cat([hidden.new_zeros(1, hidden.shape[-1]), hidden])  # before the first token
        if positions is not None:  # of the features from the root's on, those just before the new slots
            hidden = hidden[positions - self.position - 1]
        new_positions = self._new_positions(count, positions)
        out = self._pass(embeddings, hidden, new_positions, old, causal_mask(old, count))
        self._restart(new_positions, out[-1:])
        return self.outputs[0]

    def grow(self, embeddings: Tensor, parents: list[int]) -> Tensor:
        """See `DraftState.grow`."""
        old = len(self.depths)
        hidden = torch.cat([self.outputs[parent + 1] for parent in parents])
        positions, visible = self._add_nodes(parents)
        out = self._pass(embeddings, hidden, positions, self.slots + old, behind(self.slots, visible))
        self.outputs += list(torch.split(out, 1))
        return out

    def _pass(self, embeddings: Tensor, hidden: Tensor, positions: Tensor, at: int, mask: Tensor | None) -> Tensor:
        """The layer on new rows, embeddings and hidden [n, d], which go to buffer rows at .. at + n."""
        layer, rotary = self.draft.layer, self.draft.rotary
        x = layer.inputs(embeddings.to(hidden.dtype)[None], hidden[None])
        q = rotary(layer.self_attn.queries(x), positions)
        k, v = layer.self_attn.keys_values(x)
        self.buffer.write(at, rotary(k, positions), v)
        mixed = attend(q, *self.buffer.read(at + x.shape[1]), mask)
        return layer.finish(hidden[None], mixed)[0]
