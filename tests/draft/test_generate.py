"""The choice of a shape, transformers' hook, quantized drafts, and export."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.draft.quantize import quantize_draft
from dfrot.draft.store import load_draft, save_draft
from dfrot.errors import UnsupportedError
from dfrot.generation.acceptance_rates import AcceptanceRates, expected_tau, node_probabilities
from dfrot.generation.latency_probe import LatencyProbe
from dfrot.generation.native_verify import branches
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.shape_search import MeasuredShape, candidates, measured
from dfrot.generation.speculation_policy import ROUNDS_BETWEEN_CHOICES, AdaptivePolicy
from dfrot.generation.speculative import speculative
from dfrot.generation.target import Target
from dfrot.generation.tree import Tree, TreeShape
from dfrot.stages.draft.export import export_draft
from dfrot.stages.draft.generate import custom_generate, generate
from dfrot.vision.fingerprint import checkpoint_fingerprint

Get = Callable[..., Target]
PROMPT = [5, 17, 40, 3, 88, 21, 9, 60]


KNOWN = ((0.8, 0.1, 0.04, 0.02),)  # by rank, at every step


@dataclass(frozen=True)
class Made:
    """Costs by formula; remembers what was asked."""

    row: float
    level: float
    step: float = 1.0
    asked: list[TreeShape] = field(default_factory=list)

    def verify(self, shape: TreeShape) -> float:
        self.asked.append(shape)
        return self.step + self.row * ((shape.depth + 1 if shape.topk == 1 else shape.total) - 1)

    def draft(self, shape: TreeShape) -> float:
        return self.level * shape.depth


def best(costs: Made, rates: Sequence[Sequence[float]], ranked: bool = True) -> tuple[str, float]:
    found = max(measured(costs, rates, candidates(ranked)), key=lambda one: one.speedup(rates))
    return found.shape.name, found.speedup(rates)


def test_the_choice_follows_the_costs() -> None:
    assert best(Made(0.0, 0.0), [[0.8]], False) == ("chain 6", pytest.approx(sum(0.8**n for n in range(7))))
    assert best(Made(0.1, 0.1), [[0.8]], False)[0] in ("chain 2", "chain 3", "chain 4", "chain 5")
    assert best(Made(0.1, 2.0), [[0.8]], False)[1] < 1, "an expensive draft does not pay"
    assert best(Made(0.0, 0.0), KNOWN)[0].startswith("tree 6,"), "what costs nothing"
    assert best(Made(0.5, 0.0), KNOWN)[0].startswith("chain"), "rows that cost half a step are not for second guesses"
    flat = [[0.4, 0.3, 0.2, 0.1]]
    assert best(Made(0.02, 0.3), flat)[0].startswith("tree"), "second guesses that are as good as first ones"
    assert expected_tau(TreeShape(2), [[0.5], [0.25]]) == pytest.approx(1 + 0.5 + 0.125)


@pytest.mark.parametrize("row", [0.0, 0.02, 0.1, 0.4])
@pytest.mark.parametrize("level", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("rates", [KNOWN, ((0.5, 0.15, 0.1, 0.05), (0.3, 0.1, 0.1, 0.1)), ((0.95, 0.02, 0.01, 0.0),)])
def test_what_is_not_measured_could_not_win(row: float, level: float, rates: Sequence[Sequence[float]]) -> None:
    """Pruning finds what measuring everything finds, but for the gain that a measurement must promise."""
    costs = Made(row, level)
    name, gain = best(costs, rates)
    every = [MeasuredShape(s, costs.draft(s), costs.verify(s), costs.step).speedup(rates) for s in candidates(True)]
    asked = len(costs.asked) - len(every)
    assert gain * 1.011 >= max(every), name
    assert asked < len(every) / 2, "most shapes are not worth measuring"


def test_a_disturbed_step_promises_nothing() -> None:
    """A pass of two rows cannot be faster than one of a row."""
    assert MeasuredShape(TreeShape(1), 0.1, 1.0, 5.0).speedup([[0.05]]) == pytest.approx(1.05 / 1.1)


def test_measuring_ends_with_its_budget() -> None:
    costs, spent = Made(0.01, 0.01), 0.0

    def clock() -> float:
        return spent + 2.0 * len(costs.asked)

    assert len(measured(costs, KNOWN, candidates(True), clock, budget=3.0)) == 2


def test_trees_are_worth_what_their_nodes_are() -> None:
    """A fixed tree by hand: two children of the root, one of each."""
    rates = [[0.6, 0.3], [0.5, 0.2]]
    kept = node_probabilities(TreeShape(2, 2, 5), rates)
    assert kept == pytest.approx([0.6, 0.3, 0.6 * 0.5, 0.3 * 0.5])
    assert sum(node_probabilities(TreeShape(2, 2, 100), rates)) == pytest.approx(0.9 + 0.9 * 0.7)
    assert node_probabilities(TreeShape(3), rates) == pytest.approx([0.6, 0.3, 0.15])
    assert expected_tau(TreeShape(3, 4, 8), rates) >= expected_tau(TreeShape(3), rates), "a tree holds its chain"
    assert node_probabilities(TreeShape(3, 4, 8), []) == []


def test_records_of_old_and_of_nonsense() -> None:
    history = [{"simulated_tau": 1.2, "held_out_agreement": [0.2]}, {"simulated_tau": 1.5, "held_out_agreement": [0.5]}]
    old = AcceptanceRates.of_history({"history": history})
    assert old == AcceptanceRates(((0.5,),))
    assert not old.ranked
    history[1]["held_out_ranks"], history[1]["held_out_mass"] = [[0.5, 0.2]], [[0.4, 0.1]]
    new = AcceptanceRates.of_history({"history": history})
    assert new is not None
    assert new.ranked
    assert new.of(True) == ((0.5, 0.2),)
    assert new.of(False) == ((0.4, 0.1),)
    rounded = {"held_out_ranks": [[0.3, 0.1]], "held_out_mass": [[0.2, 0.1]]}
    assert AcceptanceRates.of_history({"history": history, "quantized": rounded}) == AcceptanceRates(
        ((0.3, 0.1),), ((0.2, 0.1),)
    )
    for bad in (
        {},
        {"history": []},
        {"history": 3},
        [],
        {"history": [{"simulated_tau": 1, "held_out_agreement": [7]}]},
    ):
        assert AcceptanceRates.of_history(bad) is None


def test_what_is_seen_corrects_the_choice() -> None:
    options = [MeasuredShape(TreeShape(1), 0.1, 1.1, 1.0), MeasuredShape(TreeShape(4), 0.4, 1.2, 1.0)]
    choice = AdaptivePolicy(AcceptanceRates(KNOWN), True, 0, options)
    choice.start()
    assert choice.shape == TreeShape(4)
    assert not choice.needs_latencies
    chain = Tree([0, 1, 2, 3, 4], [-1, 0, 1, 2, 3])
    for _ in range(ROUNDS_BETWEEN_CHOICES):
        choice.record_round(chain, [0, 1, 2, 3, 4])
    assert choice.shape == TreeShape(4)
    for _ in range(20 * ROUNDS_BETWEEN_CHOICES):
        choice.record_round(chain, [0])
        if choice.shape is None:
            break
    assert choice.shape is None, "guesses that never stand"
    assert choice.changes[-1][1] == "plain"
    assert "plain from round" in choice.why()
    assert choice.first_choice[0] == TreeShape(4)


def test_measured_costs_leave_nothing_behind(targets: Get, kit: SimpleNamespace) -> None:
    target = targets("llama")
    meter = LatencyProbe.after_prompt(target, kit.random_draft(), PROMPT, 20)
    shapes = [TreeShape(1), TreeShape(3), TreeShape(2, 2, 4)]
    first = [(meter.draft(shape), meter.verify(shape)) for shape in shapes]
    assert min(meter.step, *(min(pair) for pair in first)) > 0
    assert first == [(meter.draft(shape), meter.verify(shape)) for shape in shapes], "measured once"
    assert meter.cache.get_seq_length() == len(PROMPT)
    assert meter.state.slots == len(PROMPT)
    assert meter.spent > 0


@pytest.mark.parametrize("name", ["llama", "llama-kv4", "mistral"])
@pytest.mark.parametrize("arch", ["dream", "eagle3"])
def test_choosing_on_the_way_changes_no_token(targets: Get, kit: SimpleNamespace, name: str, arch: str) -> None:
    """Measured in the middle of a text, switched, given up: the text is what plain decoding says."""
    target = targets(name, (1, 2, 3) if arch == "eagle3" else ())
    draft, limits = kit.random_draft(arch), StopCriteria(40)
    told = plain(target, PROMPT, limits, Sampling()).tokens
    for prompt in (PROMPT, PROMPT[:1]):
        told = plain(target, prompt, limits, Sampling()).tokens
        choice = AdaptivePolicy(AcceptanceRates(KNOWN), True, 1000.0)
        out = speculative(target, draft, prompt, limits, Sampling(), choice)
        assert out.tokens == told
        assert choice.options, "costs were measured"
        free = [replace(one, draft=0.0, verify=one.step) for one in choice.options]  # so that it starts at all
        choice = AdaptivePolicy(AcceptanceRates(KNOWN), True, 0, free)
        out = speculative(target, draft, prompt, limits, Sampling(), choice)
        assert out.tokens == told
        assert out.accepted
    choice = AdaptivePolicy(
        AcceptanceRates(((0.9, 0.05),)), True, 0, [MeasuredShape(TreeShape(2, 2, 4), 0.3, 1.5, 1.0)]
    )
    long = StopCriteria(120)
    out = speculative(target, draft, PROMPT, long, Sampling(), choice)
    assert out.tokens == plain(target, PROMPT, long, Sampling()).tokens
    assert choice.shape is None, "a random draft is given up"
    assert 0 < len(out.accepted) < out.rounds


def test_a_choice_at_the_end_of_the_context(targets: Get, kit: SimpleNamespace) -> None:
    target, draft = targets("llama"), kit.random_draft()
    for left in (4, 2, 1):
        prompt = [PROMPT[n % len(PROMPT)] for n in range(target.max_length - left)]
        choice = AdaptivePolicy(AcceptanceRates(KNOWN), True, 100.0)
        out = speculative(target, draft, prompt, StopCriteria(left), Sampling(), choice)
        assert out.tokens == plain(target, prompt, StopCriteria(left), Sampling()).tokens
        assert all(one.shape.depth < left for one in choice.options)


def test_generate_says_how(targets: Get, kit: SimpleNamespace) -> None:
    target, draft = targets("llama"), kit.random_draft()
    told = plain(target, PROMPT, StopCriteria(12), Sampling()).tokens
    out, how = generate(target, draft, PROMPT, StopCriteria(12))
    assert out.tokens == told
    assert how.startswith("plain: the draft's record does not say")
    draft.rates = AcceptanceRates(((0.0,),))
    out, how = generate(target, draft, PROMPT, StopCriteria(12))
    assert out.tokens == told
    assert how.startswith("plain: drafting does not pay here")
    assert "chains only" in how
    out, how = generate(target, draft, PROMPT, StopCriteria(12), shape=TreeShape(2, 2, 4))
    assert out.tokens == told
    assert "tree 2,2,4" in how


def test_transformers_hook(targets: Get, kit: SimpleNamespace) -> None:
    target, draft = targets("llama-kv4"), kit.random_draft()
    function = custom_generate(target.model, draft, TreeShape(3))
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    options = {"max_new_tokens": 10, "pad_token_id": 0}
    for extra in ({"do_sample": False}, {"do_sample": False, "repetition_penalty": 1.4}):
        one_by_one = [target.model.generate(row[None], **options, **extra)[0] for row in ids]
        ours = target.model.generate(ids, custom_generate=function, **options, **extra)
        assert torch.equal(ours, torch.stack(one_by_one))
    draft.rates, hows = AcceptanceRates(KNOWN), []
    choosing = custom_generate(target.model, draft, report=hows.append)
    plainly = [target.model.generate(row[None], do_sample=False, **options)[0] for row in ids]
    assert torch.equal(
        target.model.generate(ids, custom_generate=choosing, do_sample=False, **options), torch.stack(plainly)
    )
    assert " measured in" in hows[0]
    assert " measured in" not in hows[1], "the first row's measurements serve all"
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
    expected = plain(target, PROMPT, StopCriteria(10), Sampling()).tokens
    runs = [speculative(target, one, PROMPT, StopCriteria(10), Sampling(), TreeShape(3)) for one in (draft, loaded)]
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
    from dfrot.draft.models.build import build, config_for

    _, arch = open_described(reference)
    mark = checkpoint_fingerprint(reference)
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
