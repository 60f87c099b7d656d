"""Acceptance: which draft tokens of a tree the target confirms, greedily or by sampling, without changing its output.

Sampling treats the draft tokens as a fixed list. Each is accepted with its probability under the target's
distribution (penalties and filters applied behind the tokens before it); a rejected one is removed from that
distribution and the rest renormalised. The bonus token is drawn from what remains. Every token keeps exactly the
probability that the target gives it (Leviathan et al., arXiv 2211.17192, for proposals that put all mass on one token;
for trees SpecInfer, arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.generation.sampling import Sampling, sample
from dfrot.generation.speculation.tree import Tree


@dataclass(frozen=True)
class VerifyResult:
    """The outcome of one round."""

    path: list[int]
    """Accepted nodes from the root downwards; the root is always among them."""
    bonus: int
    """The target's own token behind the last accepted node."""
    forced: int = 0
    """Draft tokens accepted only because rounding left no probability for any other token."""


def verify(
    tree: Tree, logits: Tensor, prefix: Sequence[int], sampling: Sampling, generator: torch.Generator
) -> VerifyResult:
    """Accept draft tokens.

    Args:
        tree: the draft tokens.
        logits: float32 [nodes, V], the target's logits behind each node.
        prefix: all tokens before the root.
        sampling: how the target picks tokens.
        generator: source of randomness of this sequence.
    """
    if sampling.greedy:
        return _greedy(tree, logits, prefix, sampling)
    return _sampled(tree, logits, prefix, sampling, generator)


def _tokens_up_to(tree: Tree, prefix: Sequence[int], path: list[int]) -> list[int]:
    """The tokens up to and including the last node of `path`."""
    return [*prefix, *(tree.tokens[node] for node in path)]


def _greedy(tree: Tree, logits: Tensor, prefix: Sequence[int], sampling: Sampling) -> VerifyResult:
    best_tokens = None if sampling.needs_prefix else logits.argmax(-1).tolist()
    path = [0]
    while True:
        node = path[-1]
        if best_tokens is not None:
            token = int(best_tokens[node])
        else:
            token = int(sampling.processed(logits[node], _tokens_up_to(tree, prefix, path)).argmax())
        matches = [child for child in tree.children(node) if tree.tokens[child] == token]
        if not matches:
            return VerifyResult(path, token)
        path.append(matches[0])


def _sampled(
    tree: Tree, logits: Tensor, prefix: Sequence[int], sampling: Sampling, generator: torch.Generator
) -> VerifyResult:
    path, forced = [0], 0
    while True:
        node = path[-1]
        p = sampling.probabilities(logits[node], _tokens_up_to(tree, prefix, path))
        accepted = None
        for child in tree.children(node):
            token = tree.tokens[child]
            if float(torch.rand((), generator=generator)) < float(p[token]):
                accepted = child
                break
            rest = p.clone()
            rest[token] = 0
            mass = float(rest.sum())
            if mass <= 0:  # only by rounding: the draft token had all of the probability
                accepted, forced = child, forced + 1
                break
            p = rest / mass
        if accepted is None:
            return VerifyResult(path, sample(p, generator), forced)
        path.append(accepted)
