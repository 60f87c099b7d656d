"""Training and decoding compute the same, and no slot sees the future or its siblings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dfrot.draft.models.base import Draft
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig

DREAM = DraftConfig(
    arch="dream",
    hidden_size=32,
    target_hidden_size=32,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=50,
    max_position_embeddings=64,
)
CONFIGS = {
    "dream": DREAM,
    "narrow": replace(DREAM, target_hidden_size=48),
    "two final": replace(DREAM, num_final_layers=2, mid_block=1),
    "no final": replace(DREAM, num_final_layers=0),
    "no distance": replace(DREAM, distance=False),
    "blind": replace(DREAM, cross=False),
    "layers": replace(DREAM, aux_layers=(1, 2, 3)),
    "layers, narrow": replace(DREAM, aux_layers=(1, 2, 3), target_hidden_size=48, trained_head=True),
    "layers, blind": replace(DREAM, aux_layers=(1, 2, 3), cross=False, mid_block=1),
    "layers, newest by attention": replace(DREAM, aux_layers=(1, 2, 3), newest=False),
    "eagle3": replace(DREAM, arch="eagle3", aux_layers=(1, 2, 3)),
}
N, STEPS = 20, 3


def make(name: str) -> tuple[Draft, Tensor, Tensor]:
    """A float64 draft with wide-open gates and random norms, embeddings [n, d], features [n, f]."""
    torch.manual_seed(3)
    config = CONFIGS[name]
    draft = build(config).double()
    with torch.no_grad():
        for key, parameter in draft.named_parameters():
            if "norm" in key:
                parameter.uniform_(0.5, 1.5)
            elif key.endswith("gate"):
                parameter.fill_(0.7)
            elif "null" in key:
                parameter.normal_()
    embeddings = torch.randn(N, config.target_hidden_size, dtype=torch.float64)
    features = torch.randn(N, config.feature_size, dtype=torch.float64)
    return draft, embeddings, features


def train(draft: Draft, embeddings: Tensor, features: Tensor, steps: int = STEPS) -> list[Tensor]:
    positions = torch.arange(N)[None]
    return [out[0] for out in draft.train_forward(embeddings[None], positions, features[None], steps).outputs]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_training_replays_chain_drafting(name: str) -> None:
    draft, embeddings, features = make(name)
    outputs = train(draft, embeddings, features)
    for root in (0, 1, 11, 16):
        state = draft.begin(N + STEPS)
        decoded = [state.extend(embeddings[: root + 1], features[:root])]
        for t in range(1, STEPS + 1):
            decoded.append(state.grow(embeddings[root + t : root + t + 1], [t - 2]))
        for t, out in enumerate(decoded):
            assert torch.allclose(out[0], outputs[t][root + t], atol=1e-11), (root, t)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_extending_in_parts_is_extending_at_once(name: str) -> None:
    draft, embeddings, features = make(name)
    at_once = draft.begin(N + 4).extend(embeddings[:12], features[:11])
    state = draft.begin(N + 4)
    state.extend(embeddings[:5], features[:4])
    state.grow(embeddings[5:8], [-1, -1, -1])  # drafted and dropped
    state.extend(embeddings[5:6], features[4:5])
    state.grow(embeddings[9:11], [-1, -1])
    assert torch.allclose(state.extend(embeddings[6:12], features[5:11]), at_once, atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("changed", [0, 7, N - 1])
@torch.no_grad()
def test_a_feature_reaches_later_slots_only(name: str, changed: int) -> None:
    draft, embeddings, features = make(name)
    before = train(draft, embeddings, features)
    features = features.clone()
    features[changed] += 1.0
    after = train(draft, embeddings, features)
    for t in range(STEPS + 1):
        moved = (after[t] - before[t]).abs().amax(-1) > 1e-12
        # at step t the root of slot p is p - t, which sees features below itself
        assert not moved[: changed + 1 + t].any(), f"step {t}: a slot saw the future"
        if name != "blind":
            assert moved[changed + 1 + t :].all(), "the test would pass with a draft that sees nothing"


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_an_embedding_reaches_its_slot_and_later_ones(name: str) -> None:
    draft, embeddings, features = make(name)
    before = train(draft, embeddings, features)
    embeddings = embeddings.clone()
    embeddings[7] += 1.0
    for t, out in enumerate(train(draft, embeddings, features)):
        moved = (out - before[t]).abs().amax(-1) > 1e-12
        assert not moved[:7].any()
        assert moved[7:].all()


def tree(draft: Draft, embeddings: Tensor, features: Tensor, tokens: Tensor) -> Tensor:
    """Outputs of 7 nodes: 0 1 2 under the root, 3 4 under 0, 5 under 1, 6 under 3."""
    state = draft.begin(N + 8)
    state.extend(embeddings[:9], features[:8])
    levels = [(slice(0, 3), [-1, -1, -1]), (slice(3, 6), [0, 0, 1]), (slice(6, 7), [3])]
    return torch.cat([state.grow(tokens[rows], parents) for rows, parents in levels])


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_tree_nodes_see_their_ancestors_only(name: str) -> None:
    draft, embeddings, features = make(name)
    tokens = torch.randn(7, embeddings.shape[1], dtype=torch.float64)
    before = tree(draft, embeddings, features, tokens)
    descendants = {0: {0, 3, 4, 6}, 1: {1, 5}, 2: {2}, 3: {3, 6}, 4: {4}, 5: {5}, 6: {6}}
    for node, expected in descendants.items():
        other = tokens.clone()
        other[node] += 1.0
        moved = (tree(draft, embeddings, features, other) - before).abs().amax(-1) > 1e-12
        assert set(moved.nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_branch_of_a_tree_is_a_chain(name: str) -> None:
    draft, embeddings, features = make(name)
    tokens = torch.randn(7, embeddings.shape[1], dtype=torch.float64)
    grown = tree(draft, embeddings, features, tokens)
    state = draft.begin(N + 8)
    state.extend(embeddings[:9], features[:8])
    chain = [state.grow(tokens[node : node + 1], [depth - 1])[0] for depth, node in enumerate((0, 3, 6))]
    assert torch.allclose(torch.stack(chain), grown[[0, 3, 6]], atol=1e-11)


@torch.no_grad()
def test_pruned_slots_keep_the_identity() -> None:
    draft, embeddings, features = make("dream")
    kept = torch.tensor([0, 1, 2, 5, 9, *range(10, N)])
    outputs = draft.train_forward(embeddings[None, kept], kept[None], features[None], STEPS).outputs
    before = [out[0] for out in outputs]
    features = features.clone()
    features[7] += 1.0
    for t, out in enumerate(draft.train_forward(embeddings[None, kept], kept[None], features[None], STEPS).outputs):
        moved = (out[0] - before[t]).abs().amax(-1) > 1e-12
        assert set(kept[moved].tolist()) == {p for p in kept.tolist() if p - t > 7}


@pytest.mark.parametrize("name", ["dream", "no distance", "eagle3"])
@torch.no_grad()
def test_training_replays_drafting_on_pruned_slots(name: str) -> None:
    """The cross-attention still sees every feature; eagle3 reads the feature before each slot that is kept."""
    draft, embeddings, features = make(name)
    kept = torch.tensor([0, 1, 2, 5, 9, *range(10, N)])
    outputs = draft.train_forward(embeddings[None, kept], kept[None], features[None], STEPS).outputs
    for root in (11, 16):
        slots = kept[kept <= root]
        state = draft.begin(N + STEPS)
        first = slots[:6]
        state.extend(embeddings[first], features[: int(first[-1])], first)
        decoded = [state.extend(embeddings[slots[6:]], features[int(first[-1]) : root], slots[6:])]
        for t in range(1, STEPS + 1):
            decoded.append(state.grow(embeddings[root + t : root + t + 1], [t - 2]))
        for t, out in enumerate(decoded):
            index = int((kept == root + t).nonzero())
            assert torch.allclose(out[0], outputs[t][0, index], atol=1e-11), (root, t)


@torch.no_grad()
def test_rows_of_a_batch_are_independent() -> None:
    draft, embeddings, features = make("dream")
    order = torch.randperm(N)
    both = draft.train_forward(
        torch.stack([embeddings, embeddings[order]]),
        torch.arange(N).expand(2, N),
        torch.stack([features, features[order]]),
        STEPS,
    ).outputs
    for t, out in enumerate(train(draft, embeddings[order], features[order])):
        assert torch.allclose(both[t][1], out, atol=1e-11)
