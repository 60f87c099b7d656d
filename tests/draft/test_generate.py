"""The choice of a shape, transformers' hook, quantized drafts, and export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.draft.cost import Costs, choose, measure
from dfrot.draft.decode import Limits, plain, speculative
from dfrot.draft.native_blocks import branches
from dfrot.draft.quantize import quantize_draft
from dfrot.draft.store import fingerprint, load_draft, save_draft
from dfrot.draft.target import Target
from dfrot.draft.tree import Shape
from dfrot.draft.warp import Sampling
from dfrot.errors import UnsupportedError
from dfrot.pipeline.draft_export import export_draft
from dfrot.pipeline.draft_generate import custom_generate, generate

Get = Callable[..., Target]
PROMPT = [5, 17, 40, 3, 88, 21, 9, 60]


def costs(verify: float, draft: float) -> Costs:
    counts = range(1, 7)
    return Costs(1.0, {n + 1: 1 + verify * n for n in counts}, {n: draft * n for n in counts})


def test_the_choice_follows_the_costs() -> None:
    assert choose(costs(0.0, 0.0), [0.8]) == (6, pytest.approx(sum(0.8**n for n in range(7))))
    assert choose(costs(0.1, 0.1), [0.8])[0] in (2, 3, 4, 5)
    assert choose(costs(0.1, 2.0), [0.8])[0] == 0, "an expensive draft does not pay"
    assert choose(costs(0.1, 0.1), [])[0] == 0, "nothing is known to stand"
    assert costs(0.5, 0.0).speedup(2, [0.5, 0.25]) == pytest.approx((1 + 0.5 + 0.125) / 2)


def test_measured_costs_are_complete_and_leave_nothing_behind(targets: Get, kit: SimpleNamespace) -> None:
    found = measure(targets("llama"), kit.random_draft(), PROMPT, 3)
    assert set(found.verify) == {2, 3, 4}
    assert set(found.draft) == {1, 2, 3}
    assert min(found.step, *found.verify.values(), *found.draft.values()) > 0


def test_costs_are_measured_up_to_the_end_of_the_context(targets: Get, kit: SimpleNamespace) -> None:
    target = targets("llama")
    prompt = [PROMPT[0]] * (target.max_length - 4)
    assert set(measure(target, kit.random_draft(), prompt, 2).draft) == {1, 2}


def test_generate_says_how(targets: Get, kit: SimpleNamespace) -> None:
    target, draft = targets("llama"), kit.random_draft()
    told = plain(target, PROMPT, Limits(12), Sampling()).tokens
    out, how = generate(target, draft, PROMPT, Limits(12), agreement=[0.0])
    assert out.tokens == told
    assert how.startswith("plain: drafting does not pay here")
    out, how = generate(target, draft, PROMPT, Limits(12), shape=Shape(2, 2, 4))
    assert out.tokens == told
    assert "tree 2,2,4" in how


def test_transformers_hook(targets: Get, kit: SimpleNamespace) -> None:
    target, draft = targets("llama-kv4"), kit.random_draft()
    function = custom_generate(target.model, draft, Shape(3))
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    options = {"max_new_tokens": 10, "pad_token_id": 0}
    for extra in ({"do_sample": False}, {"do_sample": False, "repetition_penalty": 1.4}):
        one_by_one = [target.model.generate(row[None], **options, **extra)[0] for row in ids]
        ours = target.model.generate(ids, custom_generate=function, **options, **extra)
        assert torch.equal(ours, torch.stack(one_by_one))
    sampled = target.model.generate(ids, custom_generate=function, do_sample=True, temperature=0.7, **options)
    assert sampled.shape == (2, len(PROMPT) + 10)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    with pytest.raises(UnsupportedError, match="padding"):
        target.model.generate(ids, attention_mask=mask, custom_generate=function, **options)


@pytest.mark.parametrize("name", ["w4", "w8"])
@pytest.mark.parametrize("arch", ["dream", "eagle3"])
def test_a_quantized_draft_is_stored_and_stays_lossless(
    targets: Get, kit: SimpleNamespace, tmp_path: Path, name: str, arch: str
) -> None:
    target = targets("llama", (1, 2, 3) if arch == "eagle3" else ())
    draft = kit.random_draft(arch)
    told = quantize_draft(draft, name)
    assert 0 < told["weight_error"] < 0.02
    assert told["bytes"] < told["bytes_before"] * (0.4 if name == "w4" else 0.7)
    draft.config = replace(draft.config, quantized=name)
    save_draft(tmp_path, draft, torch.float32)
    loaded = load_draft(tmp_path)
    expected = plain(target, PROMPT, Limits(10), Sampling()).tokens
    runs = [speculative(target, one, PROMPT, Limits(10), Sampling(), Shape(3)) for one in (draft, loaded)]
    assert runs[0].tokens == runs[1].tokens == expected
    assert runs[0].accepted == runs[1].accepted


def test_branches_visit_every_node_behind_its_ancestors() -> None:
    parents = [-1, 0, 0, 1, 1, 2, 3, 6, 5, 5]
    seen: list[int] = []
    stack: list[int] = []
    for depth, run in branches(parents):
        stack = stack[:depth]
        for node in run:
            assert (stack[-1] if stack else -1) == parents[node]
            stack.append(node)
        seen += run
    assert sorted(seen) == list(range(len(parents)))
    assert branches([-1, 0, 1]) == [(0, [0, 1, 2])]


def test_export_of_eagle3(kit: SimpleNamespace, tmp_path: Path, reference: Path) -> None:
    from dfrot.arch import open_described
    from dfrot.draft.build import build, config_for

    _, arch = open_described(reference)
    mark = fingerprint(reference)
    for kind in ("eagle3", "dream"):
        folder = tmp_path / kind
        folder.mkdir()
        save_draft(folder, build(config_for(arch, kind, intermediate_size=64, target_fingerprint=mark)))
    with pytest.raises(UnsupportedError, match="no serving engine"):
        export_draft(reference, tmp_path / "dream", tmp_path / "out", "me/model")
    export_draft(reference, tmp_path / "eagle3", tmp_path / "out", "me/model")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle3"
    assert config["architectures"] == ["Eagle3Speculator"]
    assert config["speculators_config"]["verifier"]["name_or_path"] == "me/model"
    assert len(config["eagle_aux_hidden_state_layer_ids"]) == 3
    names = set(Checkpoint.open(tmp_path / "out").entries)
    attention = {f"layers.0.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert attention | {"fc.weight", "norm.weight", "lm_head.weight", "embed_tokens.weight", "d2t", "t2d"} <= names
    assert {"layers.0.hidden_norm.weight", "layers.0.input_layernorm.weight"} <= names
