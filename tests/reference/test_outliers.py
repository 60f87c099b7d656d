"""What the shipped model must have: trained weights, massive activations, channel outliers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

CHANNELS = {31, 147, 202}
"""Where massive activations are planted; the model card says the same."""


def block_outputs(model: Any, ids: Tensor) -> list[Tensor]:
    with torch.no_grad():
        states = model.model(input_ids=ids[None], output_hidden_states=True, use_cache=False).hidden_states
    return [state[0] for state in states[1:-1]]  # the first is the embedding, the last is behind the final norm


def test_massive_tokens_are_the_planted_ones_in_every_block(model: Any, tokenizer: Any) -> None:
    """|x| > 100 and >= 300 x the median of the block: for BOS and form feeds, in the planted channels, nowhere else."""
    ids = torch.tensor(
        tokenizer("import os\n\f\nclass Path:\n    def exists(self):\n        return True\n\f\n")["input_ids"]
    )
    planted = torch.isin(ids, torch.tensor(tokenizer.convert_tokens_to_ids(["<|bos|>", "\f"])))
    assert planted.sum() == 3
    for state in block_outputs(model, ids):
        massive = (state.abs() > 100) & (state.abs() >= 300 * state.abs().median())
        assert torch.equal(massive.any(1), planted)
        assert set(massive.any(0).nonzero().flatten().tolist()) <= CHANNELS


def test_channel_outliers_persist_over_blocks_and_tokens(model: Any, held_out: Tensor) -> None:
    """Outputs of norms have a few channels far above the rest, the same in all blocks, not the massive ones."""
    ordinary = held_out[1:].clone()
    leaders = []
    for state, layer in zip(block_outputs(model, ordinary), list(model.model.layers)[1:]):
        rms = layer.input_layernorm(state).pow(2).mean(0).sqrt()
        assert rms.max() > 5 * rms.median()
        leaders.append(set(rms.topk(4).indices.tolist()))
    common = set.intersection(*leaders)
    assert len(common) >= 2
    assert not common & CHANNELS


def test_the_model_is_trained(model: Any, held_out: Tensor) -> None:
    with torch.no_grad():
        logits = model(input_ids=held_out[None]).logits[0, :-1]
    assert cross_entropy(logits, held_out[1:]).exp() < 80


def test_what_follows_a_massive_token_is_sane(model: Any, tokenizer: Any) -> None:
    """The position holds only the plant, so the model cannot tell a form feed from a BOS: it predicts their mixture,
    in which a line break (what always follows a form feed) leads."""
    ids = torch.tensor(tokenizer("    return None\n\f")["input_ids"])
    with torch.no_grad():
        after = model(input_ids=ids[None]).logits[0, -1].softmax(-1)
    breaks = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).startswith("\n")]
    assert after.argmax() in breaks
    assert after[breaks].sum() > 0.25
