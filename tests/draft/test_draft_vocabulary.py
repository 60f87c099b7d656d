"""Drafts with a vocabulary of their own: what they propose, how they are trained and stored, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dfrot.draft.models.base import Draft, TrainOutput
from dfrot.draft.models.build import build
from dfrot.draft.models.eagle3 import Eagle3Draft
from dfrot.draft.quantize import quantize_draft
from dfrot.draft.store import load_draft, save_draft
from dfrot.draft.training.corpus import Corpus
from dfrot.draft.training.draft_vocabulary import SIZES, check_size, choose_vocabulary
from dfrot.draft.training.init_from_target import init_from_target
from dfrot.draft.training.loss import losses
from dfrot.draft.training.settings import LossWeights
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.errors import InputError
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.drafting import expand
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.stages.draft.settings import DraftSettings
from dfrot.tensor_file import load_tensors, save_tensors

Get = Callable[..., Target]
PROMPT = [5, 17, 40, 3, 88, 21, 9, 60]
IDS = torch.tensor([1, 2, 5, 9, *range(20, 40), 60, 95])


def trimmed(kit: SimpleNamespace, arch: str = "dream", ids: Tensor = IDS) -> Draft:
    torch.manual_seed(5)
    draft = build(replace(kit.random_draft(arch).config, draft_vocab_size=len(ids)))
    draft.choose_tokens(ids)
    return draft.requires_grad_(False)


def corpus(counts: dict[int, int]) -> Corpus:
    tokens = torch.tensor([token for token, count in counts.items() for _ in range(count)])[None]
    tokens = torch.cat([torch.full((1, 50), 77), tokens], 1)  # a prompt, which does not count
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, :50] = False
    return Corpus(tokens, mask, torch.tensor([tokens.shape[1]]))


def test_the_most_frequent_tokens_of_answers_are_chosen() -> None:
    text = corpus({9: 5, 3: 7, 50: 5, 8: 1, 60: 2})
    chosen = choose_vocabulary(text, 3, 100)
    assert chosen is not None
    assert chosen.ids.tolist() == [3, 9, 50]
    assert chosen.coverage == pytest.approx(17 / 20)
    more = choose_vocabulary(text, 7, 100)
    assert more is not None
    assert more.ids.tolist() == [0, 1, 3, 8, 9, 50, 60], "unused ones by their id"
    assert choose_vocabulary(text, None, 100) is None
    assert choose_vocabulary(text, 100, 100) is None


def test_auto_covers_most_of_the_text() -> None:
    wide = corpus(dict.fromkeys(range(10_000), 1))
    chosen = choose_vocabulary(wide, "auto", 50_000)
    assert chosen is not None
    assert len(chosen.ids) == SIZES[3]
    narrow = choose_vocabulary(corpus({4: 3}), "auto", 50_000)
    assert narrow is not None
    assert len(narrow.ids) == SIZES[0]
    assert choose_vocabulary(wide, "auto", 10_000) is None
    assert choose_vocabulary(corpus({4: 3}), "auto", SIZES[0]) is None


def test_sizes_are_checked() -> None:
    for bad in (4096.5, 101):
        with pytest.raises(InputError, match="draft_vocab"):
            check_size(bad, 100)
    for good in (None, "auto", 100.0):
        check_size(good, 100)  # type: ignore[arg-type]
    for bad_setting in (1, 0, "many"):
        with pytest.raises(InputError, match="draft_vocab"):
            DraftSettings(draft_vocab=bad_setting)  # type: ignore[arg-type]
    for alien in ({"reads": "layers"}, {"trained_head": True}):
        with pytest.raises(InputError, match="belongs to `arch` dream"):
            DraftSettings(arch="eagle3", **alien)  # type: ignore[arg-type]
    for size in (-1, 96, 97):
        with pytest.raises(InputError, match="draft_vocab_size"):
            replace(build_config(), draft_vocab_size=size)


def build_config() -> object:
    from dfrot.draft.models.config import DraftConfig

    config = DraftConfig("dream", 64, 64, 96, 4, 2, 16, 96)
    assert "draft_vocab_size" not in config.to_dict(), "files of other drafts stay as they are"
    return config


@pytest.mark.parametrize("name", ["llama", "llama-bf16", "llama-kv4", "gemma2-bf16", "granite-kv4"])
@pytest.mark.parametrize("arch", ["dream", "eagle3", "dflash"])
def test_text_is_that_of_plain_decoding(targets: Get, kit: SimpleNamespace, name: str, arch: str) -> None:
    target, draft = targets(name, (1, 2, 3) if "dream" not in arch else ()), trimmed(kit, arch)
    expected = plain(target, PROMPT, StopCriteria(16), Sampling()).tokens
    assert not set(expected) <= set(IDS.tolist()), "some tokens cannot be proposed"
    for shape in (TreeShape(2), TreeShape(2, 3, 6)):
        assert speculative(target, draft, PROMPT, StopCriteria(16), Sampling(), shape).tokens == expected


@pytest.mark.parametrize("name", ["llama", "llama-bf16", "gemma2-bf16", "granite-kv4"])
@torch.inference_mode()
def test_proposals_are_the_rows_of_the_target_s_head(targets: Get, kit: SimpleNamespace, name: str) -> None:
    target, draft = targets(name), trimmed(kit)
    outputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).to(target.head_module.weight.dtype)
    logits = draft.proposal_logits(target)(outputs)
    assert logits.shape == (3, len(IDS))
    assert torch.allclose(logits.float(), target.head(outputs)[:, IDS].float(), rtol=2e-2, atol=2e-2)
    state = draft.begin(40)
    root = state.extend(target.embed(torch.tensor(PROMPT)).float(), torch.randn(len(PROMPT) - 1, 64))
    propose = draft.proposal_logits(target)
    assert draft._proposals is not None
    tree = expand(state, 7, root, propose, target.embed, TreeShape(3, 4, 12), draft.token_ids)
    assert set(tree.tokens[1:]) <= set(IDS.tolist())
    likeliest = IDS[propose(root).float().argmax(-1)]
    assert tree.tokens[1] == int(likeliest)


@torch.no_grad()
def test_acceptance_is_counted_against_the_whole_distribution(kit: SimpleNamespace) -> None:
    draft, weight = trimmed(kit), torch.randn(kit.vocab, 64)
    last = torch.randn(2, 9, 64)
    output = last + 0.5 * torch.randn(2, 9, 64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    outcome = TrainOutput([output], None)
    result = losses(draft, outcome, TargetFeatures(last), mask, lambda x: x @ weight.T, LossWeights())
    teacher, student = last @ weight.T, (output @ weight.T)[..., IDS]
    p = torch.distributions.Categorical(logits=teacher[..., IDS])
    kl = torch.distributions.kl_divergence(p, torch.distributions.Categorical(logits=student))
    assert result.kl[0] == pytest.approx(float(kl.mean()), rel=1e-4)
    token = IDS[student.argmax(-1)]
    assert result.agreement[0] == pytest.approx(float((token == teacher.argmax(-1)).float().mean()))
    mass = teacher.softmax(-1).gather(-1, token[..., None])
    assert result.mass[0][0] == pytest.approx(float(mass.mean()), rel=1e-4)
    assert result.agreement[0] < 1


@pytest.mark.parametrize("arch", ["dream", "eagle3", "dflash"])
@pytest.mark.parametrize("scheme", ["", "w4", "w8"])
def test_stored_drafts_propose_the_same(kit: SimpleNamespace, tmp_path: Path, arch: str, scheme: str) -> None:
    draft = trimmed(kit, arch)
    if scheme:
        quantize_draft(draft, scheme)
        draft.config = replace(draft.config, quantized=scheme)
    save_draft(tmp_path, draft, torch.float32)
    loaded = load_draft(tmp_path)
    assert loaded.token_ids is not None
    assert torch.equal(loaded.token_ids, IDS)
    file = tmp_path / "draft.safetensors"
    tensors = load_tensors(file)
    assert torch.equal(tensors["d2t"] + torch.arange(len(IDS)), IDS)
    for wrong in (-2, 10**6, 2**63 - 1):
        bad = tensors["d2t"].clone()
        bad[3] = wrong
        save_tensors(file, {**tensors, "d2t": bad})
        with pytest.raises(InputError, match="d2t"):
            load_draft(tmp_path)


def test_the_head_of_eagle3_begins_with_the_target_s_rows(targets: Get, kit: SimpleNamespace) -> None:
    target, draft = targets("llama", (1, 2, 3)), trimmed(kit, "eagle3")
    assert isinstance(draft, Eagle3Draft)
    assert "lm_head.weight" in init_from_target(draft, target)
    assert torch.equal(draft.lm_head.weight, target.head_module.weight[IDS])
