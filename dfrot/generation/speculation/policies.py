"""The policy and the probe that belong to a draft: a trained model, or look-up drafting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from dfrot.generation.settings import NgramSettings
from dfrot.generation.speculation.drafter import Drafter
from dfrot.generation.speculation.latency_probe import LatencyProbe, TargetProbe
from dfrot.generation.speculation.loop import SPARE_SLOTS, refuse_depth, refuse_tree
from dfrot.generation.speculation.ngram_policy import NgramPolicy
from dfrot.generation.speculation.policy import AdaptivePolicy
from dfrot.generation.speculation.shape_search import MeasuredShape
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target

Policy: TypeAlias = AdaptivePolicy | NgramPolicy


def policy_of(
    drafter: Drafter | NgramSettings, greedy: bool, budget: float, options: Sequence[MeasuredShape] = ()
) -> Policy:
    """The policy of one text. greedy: whether it is decoded greedily. budget: of measuring, in durations of a plain
    step. options: shapes measured before; empty to measure when the text begins."""
    if isinstance(drafter, NgramSettings):
        return NgramPolicy(drafter.most, budget, options, greedy)
    return AdaptivePolicy(drafter.rates, greedy, budget, options)


def described(drafter: Drafter | NgramSettings, shape: TreeShape) -> str:
    """How a text is decoded with a fixed shape. Raises InputError for a tree of look-up drafting."""
    if not isinstance(drafter, NgramSettings):
        refuse_depth(drafter, shape)
        return f"speculative, {shape.name}"
    refuse_tree(shape)
    return f"speculative, ngram, {shape.name}"


def start_behind(policy: Policy, target: Target, drafter: Drafter | NgramSettings, prompt: Sequence[int]) -> None:
    """Let a policy measure behind a prompt of its own, for texts to come."""
    room = target.max_length - len(prompt) - 1
    if isinstance(policy, NgramPolicy):
        chain_probe = TargetProbe.behind(target, prompt)
        policy.start(chain_probe, lambda: chain_probe.spent, room)
    elif not isinstance(drafter, NgramSettings):
        probe = LatencyProbe.after_prompt(target, drafter, prompt, policy.max_drafted + SPARE_SLOTS)
        policy.start(probe, lambda: probe.spent, room if drafter.max_depth is None else min(room, drafter.max_depth))
