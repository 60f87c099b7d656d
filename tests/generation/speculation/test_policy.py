"""The speculation policy: corrected by observed acceptance, lossless whatever it chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.acceptance_rates import AcceptanceRates, expected_tau
from dfrot.generation.speculation.latency_probe import LatencyProbe
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.policy import LARGEST_TREE, ROUNDS_BETWEEN_CHOICES, AdaptivePolicy
from dfrot.generation.speculation.shape_search import MeasuredShape, candidates
from dfrot.generation.speculation.tree import Tree, TreeShape
from dfrot.generation.target import Target

Get = Callable[..., Target]
PROMPT = [5, 17, 40, 3, 88, 21, 9, 60]


RATES = ((0.8, 0.1, 0.04, 0.02),)  # by rank, at every step


def test_observed_acceptance_corrects_the_choice() -> None:
    options = [MeasuredShape(TreeShape(1), 0.1, 1.1, 1.0), MeasuredShape(TreeShape(4), 0.4, 1.2, 1.0)]
    policy = AdaptivePolicy(AcceptanceRates(RATES), True, 0, options)
    policy.start()
    assert policy.shape == TreeShape(4)
    assert not policy.needs_latencies
    chain = Tree([0, 1, 2, 3, 4], [-1, 0, 1, 2, 3])
    for _ in range(ROUNDS_BETWEEN_CHOICES):
        policy.record_round(chain, [0, 1, 2, 3, 4])
    assert policy.shape == TreeShape(4)
    for _ in range(20 * ROUNDS_BETWEEN_CHOICES):
        policy.record_round(chain, [0])
        if policy.shape is None:
            break
    assert policy.shape is None, "draft tokens that are never accepted"
    assert policy.changes[-1][1] == "plain"
    assert "plain from round" in policy.why()
    assert policy.first_choice[0] == TreeShape(4)


def test_a_useless_draft_costs_little() -> None:
    """Whatever its record promises: at most 3 % of 200 plain steps are lost. Where the record promises nothing, nothing
    is measured."""
    options = [MeasuredShape(TreeShape(3), 0.6, 1.5, 1.0), MeasuredShape(TreeShape(1), 0.2, 1.2, 1.0)]
    policy = AdaptivePolicy(AcceptanceRates(((0.95, 0.02),)), True, 0, options)
    policy.start()
    lost, rounds = 0.0, 0
    while policy.shape is not None:
        (cost,) = (option.cost for option in options if option.shape == policy.shape)
        tree = Tree(list(range(policy.shape.depth + 1)), list(range(-1, policy.shape.depth)))
        policy.record_round(tree, [0])
        lost, rounds = lost + cost - 1, rounds + 1
    assert rounds > 1
    assert lost <= 0.03 * 200
    assert policy.changes == [(rounds, "plain")]
    useless = AdaptivePolicy(AcceptanceRates(((0.01, 0.0), (0.3, 0.1))), True, 100.0)
    assert not useless.needs_latencies
    useless.start()
    assert useless.shape is None
    assert "accepted too rarely" in useless.why()
    assert all(expected_tau(shape, RATES) <= expected_tau(LARGEST_TREE, RATES) for shape in candidates(True))


def test_measuring_latencies_leaves_cache_and_state_alone(targets: Get, kit: SimpleNamespace) -> None:
    target = targets("llama")
    probe = LatencyProbe.after_prompt(target, kit.random_draft(), PROMPT, 20)
    shapes = [TreeShape(1), TreeShape(3), TreeShape(2, 2, 4)]
    first = [(probe.draft(shape), probe.verify(shape)) for shape in shapes]
    assert min(probe.step, *(min(pair) for pair in first)) > 0
    assert first == [(probe.draft(shape), probe.verify(shape)) for shape in shapes], "measured once"
    assert probe.cache.get_seq_length() == len(PROMPT)
    assert probe.state.slots == len(PROMPT)
    assert probe.spent > 0


@pytest.mark.parametrize("name", ["llama", "llama-kv4", "mistral"])
@pytest.mark.parametrize("arch", ["dream", "eagle3", "dflash"])
def test_changing_the_shape_changes_no_token(targets: Get, kit: SimpleNamespace, name: str, arch: str) -> None:
    """Measured in the middle of a text, changed, given up: the text is that of plain decoding."""
    target = targets(name, (1, 2, 3) if "dream" not in arch else ())
    draft, stop = kit.random_draft(arch), StopCriteria(40)
    expected = plain(target, PROMPT, stop, Sampling()).tokens
    for prompt in (PROMPT, PROMPT[:1]):
        expected = plain(target, prompt, stop, Sampling()).tokens
        policy = AdaptivePolicy(AcceptanceRates(RATES), True, 1000.0)
        out = speculative(target, draft, prompt, stop, Sampling(), policy)
        assert out.tokens == expected
        assert policy.options, "costs were measured"
        free = [
            replace(option, draft=0.0, verify=option.step) for option in policy.options
        ]  # so that it starts drafting
        policy = AdaptivePolicy(AcceptanceRates(RATES), True, 0, free)
        out = speculative(target, draft, prompt, stop, Sampling(), policy)
        assert out.tokens == expected
        assert out.accepted
    policy = AdaptivePolicy(
        AcceptanceRates(((0.9, 0.05),)), True, 0, [MeasuredShape(TreeShape(2, 2, 4), 0.3, 1.5, 1.0)]
    )
    long = StopCriteria(120)
    out = speculative(target, draft, PROMPT, long, Sampling(), policy)
    assert out.tokens == plain(target, PROMPT, long, Sampling()).tokens
    assert policy.shape is None, "a random draft is given up"
    assert 0 < len(out.accepted) < out.rounds


def test_choosing_at_the_end_of_the_context(targets: Get, kit: SimpleNamespace) -> None:
    target, draft = targets("llama"), kit.random_draft()
    for room in (4, 2, 1):
        prompt = [PROMPT[n % len(PROMPT)] for n in range(target.max_length - room)]
        policy = AdaptivePolicy(AcceptanceRates(RATES), True, 100.0)
        out = speculative(target, draft, prompt, StopCriteria(room), Sampling(), policy)
        assert out.tokens == plain(target, prompt, StopCriteria(room), Sampling()).tokens
        assert all(option.shape.depth < room for option in policy.options)
