"""The choice of a shape, transformers' hook, quantized drafts, and export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from dfrot.generation.acceptance_rates import AcceptanceRates
from dfrot.generation.latency_probe import LatencyProbe
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.shape_search import MeasuredShape
from dfrot.generation.speculation_policy import ROUNDS_BETWEEN_CHOICES, AdaptivePolicy
from dfrot.generation.speculative import speculative
from dfrot.generation.target import Target
from dfrot.generation.tree import Tree, TreeShape

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
