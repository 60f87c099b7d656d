"""Which guesses stand: greedily or by sampling, without changing what the target alone would have said.

Sampling treats the guesses as a fixed list, so each is accepted with its probability under the target's (warped,
prefix-aware) distribution; a refused one is taken out and the rest renormalised. The last token, residual or bonus,
comes from that same distribution. Every token keeps exactly its probability (A. Leviathan et al., 2211.17192, for
point-mass proposals; for trees SpecInfer, 2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.generation.sampling import Sampling, sample
from dfrot.generation.tree import Tree


@dataclass(frozen=True)
class VerifyResult:
    """path: accepted nodes, the root first. bonus: the token behind the last of them. forced: guesses accepted only
    because rounding had left the residual empty."""

    path: list[int]
    bonus: int
    forced: int = 0


def verify(
    tree: Tree, logits: Tensor, prefix: Sequence[int], sampling: Sampling, generator: torch.Generator
) -> VerifyResult:
    """logits float32 [nodes, V]: what the target says behind each node; prefix: all tokens before the root."""
    return (
        _greedy(tree, logits, prefix, sampling)
        if sampling.greedy
        else _sampled(tree, logits, prefix, sampling, generator)
    )


def _before(tree: Tree, prefix: Sequence[int], path: list[int]) -> list[int]:
    """The tokens up to and including the last node of `path`."""
    return [*prefix, *(tree.tokens[node] for node in path)]


def _greedy(tree: Tree, logits: Tensor, prefix: Sequence[int], sampling: Sampling) -> VerifyResult:
    best = None if sampling.needs_prefix else logits.argmax(-1).tolist()
    path = [0]
    while True:
        node = path[-1]
        if best is not None:
            said = int(best[node])
        else:
            said = int(sampling.processed(logits[node], _before(tree, prefix, path)).argmax())
        following = [child for child in tree.children(node) if tree.tokens[child] == said]
        if not following:
            return VerifyResult(path, said)
        path.append(following[0])


def _sampled(
    tree: Tree, logits: Tensor, prefix: Sequence[int], sampling: Sampling, generator: torch.Generator
) -> VerifyResult:
    path, forced = [0], 0
    while True:
        node = path[-1]
        p = sampling.probabilities(logits[node], _before(tree, prefix, path))
        accepted = None
        for child in tree.children(node):
            token = tree.tokens[child]
            if float(torch.rand((), generator=generator)) < float(p[token]):
                accepted = child
                break
            rest = p.clone()
            rest[token] = 0
            mass = float(rest.sum())
            if mass <= 0:  # only rounding leaves nothing: the guess had all of the probability
                accepted, forced = child, forced + 1
                break
            p = rest / mass
        if accepted is None:
            return VerifyResult(path, sample(p, generator), forced)
        path.append(accepted)
