"""A DFlash draft: training and decoding compute the same, blocks see what they may, the native pass agrees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dfrot.draft.models.base import Draft
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.dflash import DFlashDraft
from dfrot.draft.models.dflash_state import DFlashState
from dfrot.draft.models.native_pass import unfit
from dfrot.draft.quantize import quantize_draft
from dfrot.draft.training.trainer import spaced_roots
from dfrot.errors import InputError
from dfrot_kernels import native

CONFIG = DraftConfig(
    "dflash", 32, 32, 64, 4, 2, 8, 50, max_position_embeddings=24, aux_layers=(1, 2), num_layers=2, block_size=5
)
N, STEPS = 20, 3


def make(config: DraftConfig = CONFIG, dtype: torch.dtype = torch.float64) -> tuple[DFlashDraft, Tensor, Tensor]:
    """A draft with random norms and masks, embeddings [n, d], features [n, f]."""
    torch.manual_seed(3)
    draft = build(config)
    assert isinstance(draft, DFlashDraft)
    for name, parameter in draft.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    draft.set_mask(torch.randn(config.hidden_size))
    draft = draft.to(dtype).requires_grad_(False).eval()
    return draft, torch.randn(N, config.hidden_size).to(dtype), torch.randn(N, config.feature_size).to(dtype)


def train(draft: Draft, embeddings: Tensor, features: Tensor, roots: Tensor | None = None) -> list[Tensor]:
    positions = torch.arange(N)[None]
    return [out[0] for out in draft.train_forward(embeddings[None], positions, features[None], STEPS, roots).outputs]


@torch.no_grad()
def test_training_replays_drafting() -> None:
    draft, embeddings, features = make()
    outputs = train(draft, embeddings, features)
    assert len(outputs) == STEPS + 1
    for root in (0, 1, 11, 15):
        block = draft.begin(N).extend(embeddings[: root + 1], features[:root])
        assert len(block) == draft.max_depth == 4
        for t, out in enumerate(block):
            assert torch.allclose(out, outputs[t][root + t], atol=1e-11), (root, t)


@torch.no_grad()
def test_chosen_roots_have_the_outputs_that_they_have_among_all() -> None:
    draft, embeddings, features = make()
    positions = torch.arange(N)[None].expand(2, N)
    roots = torch.zeros(2, N, dtype=torch.bool)
    roots[0, [3, 4, 17]], roots[1, 8] = True, True
    both = draft.train_forward(embeddings.expand(2, -1, -1), positions, features.expand(2, -1, -1), STEPS, roots)
    every = train(draft, embeddings, features)
    assert both.reached is not None
    for t, (out, reached) in enumerate(zip(both.outputs, both.reached)):
        expected = [{3 + t, 4 + t, 17 + t} & set(range(N)), {8 + t}]
        for row in range(2):
            assert set(reached[row].nonzero().flatten().tolist()) == expected[row]
            assert torch.allclose(out[row][reached[row]], every[t][reached[row]], atol=1e-11)


@torch.no_grad()
def test_a_feature_reaches_blocks_behind_it_only() -> None:
    draft, embeddings, features = make()
    before = train(draft, embeddings, features)
    changed = features.clone()
    changed[7] += 1.0
    other_root = embeddings.clone()
    other_root[7] += 1.0
    for t in range(STEPS + 1):
        moved = (train(draft, embeddings, changed)[t] - before[t]).abs().amax(-1) > 1e-12
        assert not moved[: 8 + t].any(), "a block saw the future"
        assert moved[8 + t :].all()
        moved = (train(draft, other_root, features)[t] - before[t]).abs().amax(-1) > 1e-12
        assert moved.nonzero().flatten().tolist() == [7 + t], "a root's token reaches its own block"


@torch.no_grad()
def test_extending_in_parts_and_going_back() -> None:
    draft, embeddings, features = make()
    at_once = draft.begin(N).extend(embeddings[:12], features[:11])
    state = draft.begin(N)
    state.extend(embeddings[:5], features[:4])
    mark = state.mark()
    state.extend(embeddings[5:8] + 1.0, features[4:7] + 1.0)
    state.back(mark)
    state.extend(embeddings[5:6], features[4:5])
    assert torch.allclose(state.extend(embeddings[6:12], features[5:11]), at_once, atol=1e-11)
    assert state.slots == 12
    with pytest.raises(TypeError, match="whole"):
        state.grow(embeddings[:1], [-1])


@torch.no_grad()
def test_slots_may_be_missing_and_the_context_ends() -> None:
    """Image tokens without slots: all features are read. Behind the last position there is nothing to propose."""
    draft, embeddings, features = make()
    kept = torch.tensor([0, 1, 2, 5, 9, *range(10, N)])
    outputs = draft.train_forward(embeddings[None, kept], kept[None], features[None], STEPS).outputs
    state = draft.begin(30)
    state.extend(embeddings[kept[:6]], features[:10], kept[:6])
    block = state.extend(embeddings[[11, 12]], features[10:12], torch.tensor([11, 12]))
    for t, out in enumerate(block):
        assert torch.allclose(out, outputs[t][0, int((kept == 12 + t).nonzero())], atol=1e-11)
    more = torch.cat([features, features])
    rows = [len(state.extend(embeddings[:1], more[p : p + 1], torch.tensor([p + 1]))) for p in range(12, 23)]
    assert rows == [4] * 7 + [3, 2, 1, 0]


@pytest.mark.skipif(not native.active(), reason="no native library")
@pytest.mark.parametrize("quantized", ["", "w8", "w4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_native_blocks_equal_the_modules(quantized: str, dtype: torch.dtype, isa: str) -> None:
    config = replace(CONFIG, hidden_size=64, target_hidden_size=64, intermediate_size=96, head_dim=16, block_size=16)
    draft, embeddings, features = make(replace(config, max_position_embeddings=64), torch.float32)
    if quantized:
        quantize_draft(draft, quantized)
    draft = draft.to(dtype)
    assert unfit(draft) is None
    outputs = []
    for natively in (True, False):
        state = DFlashState(draft, 40, natively)
        assert (state.native is not None) == natively
        e, f = embeddings.to(dtype), features.to(dtype)
        parts = [state.extend(e[:9], f[:8]), state.extend(e[9:10], f[8:9]), state.extend(e[10:13], f[9:12])]
        outputs.append(torch.cat(parts).double())
        assert state.native_passes == (3 if natively else 0)
    assert outputs[0].shape == (45, 64)
    difference = (outputs[0] - outputs[1]).norm() / outputs[1].norm()
    assert difference < (1e-5 if dtype == torch.float32 else 3e-2)


def test_roots_are_spaced() -> None:
    mask = torch.tensor([[False] * 2 + [True] * 10, [True, False] * 6, [False] * 12])
    assert spaced_roots(mask, 5)[0].nonzero().flatten().tolist() == [2, 4, 6, 8, 10]
    assert spaced_roots(mask, 6)[1].equal(mask[1])
    assert not spaced_roots(mask, 5)[2].any()


@pytest.mark.parametrize("bad", [{"block_size": 1}, {"block_size": 17}, {"num_layers": 0}, {"mask_token_id": 50}])
def test_bad_configs_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        replace(CONFIG, **bad)  # type: ignore[arg-type]
    for other in ({"aux_layers": ()}, {"target_hidden_size": 48}):
        with pytest.raises(InputError, match="dflash"):
            replace(CONFIG, **other)  # type: ignore[arg-type]
    assert DraftConfig.from_dict(CONFIG.to_dict(), "draft.json") == CONFIG
