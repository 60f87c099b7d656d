"""Speculative sampling keeps the target's distribution; two wrong rules of others do not pass the same test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dfrot.errors import InputError
from dfrot.generation.sampling import Sampling, sample
from dfrot.generation.tree import Tree
from dfrot.generation.verify import VerifyResult, verify

V, DEPTH, LENGTH, RUNS = 8, 3, 4, 3000
TABLE = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(4))
GUESSES = [torch.randperm(V, generator=torch.Generator().manual_seed(n))[:3].tolist() for n in range(V)]
WARPS = {
    "nucleus": Sampling(temperature=0.6, top_p=0.9),
    "top-k": Sampling(temperature=1.0, top_k=4),
    "plain": Sampling(temperature=1.0),
    "prefix": Sampling(temperature=1.0, top_p=0.8, repetition_penalty=1.7),
}


class Remembering(Sampling):
    """The distribution depends on the prefix alone here, so it is computed once."""

    memory: dict[tuple[int, ...], Tensor]

    def probabilities(self, logits: Tensor, prefix: Sequence[int]) -> Tensor:
        key = tuple(prefix) if self.needs_prefix else (prefix[-1],)
        if key not in self.memory:
            self.memory[key] = super().probabilities(logits, prefix)
        return self.memory[key]


def remembering(warp: Sampling) -> Remembering:
    made = Remembering(warp.temperature, warp.top_p, warp.top_k, warp.repetition_penalty)
    object.__setattr__(made, "memory", {})
    return made


def drafted(root: int) -> Tree:
    """Every node proposes the three tokens of its state; only the first two of a level grow."""
    tree, level = Tree([root]), [0]
    for _ in range(DEPTH):
        following = []
        for node in level:
            for token in GUESSES[tree.tokens[node]]:
                tree.tokens.append(token)
                tree.parents.append(node)
                following.append(len(tree.tokens) - 1)
        level = following[:2]
    return tree


def counts(warp: Sampling, rule: str = "ours") -> Counter[tuple[int, ...]]:
    """How often each continuation of token 0 comes out of RUNS speculative runs."""
    generator, found = torch.Generator().manual_seed(1), Counter[tuple[int, ...]]()
    warp = remembering(warp)
    for _ in range(RUNS):
        told = [0]
        while len(told) <= LENGTH:
            tree = drafted(told[-1])
            logits = TABLE[tree.tokens]
            verdict = verify(tree, logits, told[:-1], warp, generator)
            if rule == "raw bonus" and not tree.children(verdict.path[-1]):
                raw = logits[verdict.path[-1]].softmax(-1)
                verdict = VerifyResult(verdict.path, sample(raw, generator))
            if rule == "no residual" and tree.children(verdict.path[-1]):
                before = [*told[:-1], *(tree.tokens[node] for node in verdict.path)]
                verdict = VerifyResult(
                    verdict.path, sample(warp.probabilities(logits[verdict.path[-1]], before), generator)
                )
            told += [tree.tokens[node] for node in verdict.path[1:]] + [verdict.bonus]
        found[tuple(told[1 : LENGTH + 1])] += 1
    return found


def expected(warp: Sampling) -> dict[tuple[int, ...], float]:
    """Exact probabilities of all V^LENGTH continuations."""
    warp, found = remembering(warp), {}
    for cell in product(range(V), repeat=LENGTH):
        p, told = 1.0, [0]
        for token in cell:
            if p:
                p *= float(warp.probabilities(TABLE[told[-1]], told)[token])
            told.append(token)
        found[cell] = p
    return found


def judge(warp: Sampling, rule: str = "ours") -> tuple[float, int]:
    """p-value over the cells that expect at least 5 (the others together are one), and impossible outcomes seen."""
    seen, p = counts(warp, rule), expected(warp)
    assert abs(sum(p.values()) - 1) < 1e-4
    big = [cell for cell in p if RUNS * p[cell] >= 5]
    rest_expected = RUNS * (1 - sum(p[cell] for cell in big))
    rest_seen = RUNS - sum(seen[cell] for cell in big)
    statistic = sum((seen[cell] - RUNS * p[cell]) ** 2 / (RUNS * p[cell]) for cell in big)
    cells = len(big)
    if rest_expected >= 5:
        statistic += (rest_seen - rest_expected) ** 2 / rest_expected
        cells += 1
    return float(chi2.sf(statistic, cells - 1)), sum(count for cell, count in seen.items() if p[cell] == 0)


@pytest.mark.parametrize("name", WARPS)
def test_sampling_keeps_the_distribution(name: str) -> None:
    p_value, impossible = judge(WARPS[name])
    assert p_value > 1e-3
    assert impossible == 0


def test_the_published_bonus_rule_fails() -> None:
    """A bonus from the raw softmax brings tokens that the nucleus excludes."""
    assert judge(WARPS["nucleus"], "raw bonus")[1] > 0


def test_forgetting_the_residual_fails() -> None:
    assert judge(WARPS["plain"], "no residual")[0] < 1e-6


@pytest.mark.parametrize("name", WARPS)
def test_filters_are_those_of_transformers(name: str) -> None:
    warp = WARPS[name]
    theirs = LogitsProcessorList()
    if warp.repetition_penalty != 1:
        theirs.append(RepetitionPenaltyLogitsProcessor(warp.repetition_penalty))
    theirs.append(TemperatureLogitsWarper(warp.temperature))
    if warp.top_k:
        theirs.append(TopKLogitsWarper(warp.top_k))
    if warp.top_p < 1:
        theirs.append(TopPLogitsWarper(warp.top_p))
    for row in range(V):
        prefix = [row, 3, 3, 5]
        scores = theirs(torch.tensor([prefix]), TABLE[row : row + 1].clone())
        assert torch.allclose(warp.probabilities(TABLE[row], prefix), scores[0].softmax(-1), atol=1e-6)


def test_a_certain_guess_is_accepted_even_if_rounding_leaves_no_rest() -> None:
    logits = torch.tensor([[0.0, 200.0], [0.0, 200.0]])
    for seed in range(50):
        verdict = verify(
            Tree([0, 1], [-1, 0]), logits, [], Sampling(temperature=1.0), torch.Generator().manual_seed(seed)
        )
        assert verdict.path == [0, 1]
        assert verdict.bonus == 1


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"repetition_penalty": 0.0}]
)
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Sampling(**bad)  # type: ignore[arg-type]
