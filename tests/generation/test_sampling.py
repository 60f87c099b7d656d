"""Speculative sampling keeps the target's distribution; two wrong rules fail the same test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

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
from dfrot.generation.speculation.drafting import expand
from dfrot.generation.speculation.ngram_index import NgramIndex
from dfrot.generation.speculation.tree import Tree, TreeShape
from dfrot.generation.speculation.verify import VerifyResult, verify

V, DEPTH, LENGTH, RUNS = 8, 3, 4, 3000
TABLE = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(4))
DRAFT_TOKENS = [torch.randperm(V, generator=torch.Generator().manual_seed(n))[:3].tolist() for n in range(V)]
EARLIER = torch.randint(V, (60,), generator=torch.Generator().manual_seed(5)).tolist()
SAYABLE = [0, 2, 5, 6]
SAMPLINGS = {
    "nucleus": Sampling(temperature=0.6, top_p=0.9),
    "top-k": Sampling(temperature=1.0, top_k=4),
    "plain": Sampling(temperature=1.0),
    "prefix": Sampling(temperature=1.0, top_p=0.8, repetition_penalty=1.7),
}


class Memoised(Sampling):
    """The distribution depends on the prefix alone here, so it is computed once."""

    memory: dict[tuple[int, ...], Tensor]

    def probabilities(self, logits: Tensor, prefix: Sequence[int]) -> Tensor:
        key = tuple(prefix) if self.needs_prefix else (prefix[-1],)
        if key not in self.memory:
            self.memory[key] = super().probabilities(logits, prefix)
        return self.memory[key]


def memoised(sampling: Sampling) -> Memoised:
    copy = Memoised(sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty)
    object.__setattr__(copy, "memory", {})
    return copy


def drafted(root: int) -> Tree:
    """Every node proposes the three tokens of its state; only the first two of a level get children."""
    tree, level = Tree([root]), [0]
    for _ in range(DEPTH):
        next_level = []
        for node in level:
            for token in DRAFT_TOKENS[tree.tokens[node]]:
                tree.tokens.append(token)
                tree.parents.append(node)
                next_level.append(len(tree.tokens) - 1)
        level = next_level[:2]
    return tree


def looked_up(tokens: list[int]) -> Tree:
    """What look-up drafting proposes behind a text, from that text and an earlier one."""
    index = NgramIndex(2, [*EARLIER, *tokens])
    match = index.match()
    assert match is not None
    return Tree([tokens[-1], *index.continuation(match, 2)], [-1, 0, 1])


def trimmed(root: int) -> Tree:
    """A tree of a draft that cannot say half of the tokens."""
    first = [token for token in DRAFT_TOKENS[root] if token in SAYABLE] or SAYABLE[:1]
    tree = Tree([root, *first], [-1] + [0] * len(first))
    tree.tokens.append(SAYABLE[1])
    tree.parents.append(1)
    return tree


class _Block:
    """The state of a draft of whole blocks."""

    whole_blocks = True


def of_a_block(tokens: list[int]) -> Tree:
    """Levels below the newest token, whose candidates depend on that token and the level alone."""
    generator = torch.Generator().manual_seed(tokens[-1])
    marginals = torch.randn(DEPTH, V, generator=generator)
    state: Any = _Block()
    return expand(state, tokens[-1], marginals, lambda x: x, lambda ids: ids, TreeShape(DEPTH, 2, 6))


def counts(
    sampling: Sampling, rule: str = "ours", propose: Callable[[list[int]], Tree] = lambda tokens: drafted(tokens[-1])
) -> Counter[tuple[int, ...]]:
    """How often each continuation of token 0 comes out of RUNS speculative runs."""
    generator, outcomes = torch.Generator().manual_seed(1), Counter[tuple[int, ...]]()
    sampling = memoised(sampling)
    for _ in range(RUNS):
        tokens = [0]
        while len(tokens) <= LENGTH:
            tree = propose(tokens)
            logits = TABLE[tree.tokens]
            result = verify(tree, logits, tokens[:-1], sampling, generator)
            if rule == "raw bonus" and not tree.children(result.path[-1]):
                raw = logits[result.path[-1]].softmax(-1)
                result = VerifyResult(result.path, sample(raw, generator))
            if rule == "no residual" and tree.children(result.path[-1]):
                before = [*tokens[:-1], *(tree.tokens[node] for node in result.path)]
                result = VerifyResult(
                    result.path, sample(sampling.probabilities(logits[result.path[-1]], before), generator)
                )
            tokens += [tree.tokens[node] for node in result.path[1:]] + [result.bonus]
        outcomes[tuple(tokens[1 : LENGTH + 1])] += 1
    return outcomes


def expected(sampling: Sampling) -> dict[tuple[int, ...], float]:
    """Exact probabilities of all V^LENGTH continuations."""
    sampling, probabilities = memoised(sampling), {}
    for cell in product(range(V), repeat=LENGTH):
        p, tokens = 1.0, [0]
        for token in cell:
            if p:
                p *= float(sampling.probabilities(TABLE[tokens[-1]], tokens)[token])
            tokens.append(token)
        probabilities[cell] = p
    return probabilities


def goodness_of_fit(sampling: Sampling, rule: str = "ours", **propose: Any) -> tuple[float, int]:
    """p-value over the cells that expect at least 5 (all others together are a cell), and the impossible outcomes."""
    observed, p = counts(sampling, rule, **propose), expected(sampling)
    assert abs(sum(p.values()) - 1) < 1e-4
    big = [cell for cell in p if RUNS * p[cell] >= 5]
    rest_expected = RUNS * (1 - sum(p[cell] for cell in big))
    rest_observed = RUNS - sum(observed[cell] for cell in big)
    statistic = sum((observed[cell] - RUNS * p[cell]) ** 2 / (RUNS * p[cell]) for cell in big)
    cells = len(big)
    if rest_expected >= 5:
        statistic += (rest_observed - rest_expected) ** 2 / rest_expected
        cells += 1
    return float(chi2.sf(statistic, cells - 1)), sum(count for cell, count in observed.items() if p[cell] == 0)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_sampling_keeps_the_distribution(name: str) -> None:
    p_value, impossible = goodness_of_fit(SAMPLINGS[name])
    assert p_value > 1e-3
    assert impossible == 0


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_trimmed_vocabulary_keeps_the_distribution(name: str) -> None:
    p_value, impossible = goodness_of_fit(SAMPLINGS[name], propose=lambda tokens: trimmed(tokens[-1]))
    assert p_value > 1e-3
    assert impossible == 0


@pytest.mark.parametrize("name", SAMPLINGS)
def test_look_up_drafting_keeps_the_distribution(name: str) -> None:
    p_value, impossible = goodness_of_fit(SAMPLINGS[name], propose=looked_up)
    assert p_value > 1e-3
    assert impossible == 0


@pytest.mark.parametrize("name", SAMPLINGS)
def test_blocks_keep_the_distribution(name: str) -> None:
    """A tree of independent marginals: every node of a level has the same candidates."""
    p_value, impossible = goodness_of_fit(SAMPLINGS[name], propose=of_a_block)
    assert p_value > 1e-3
    assert not impossible


def test_a_bonus_from_raw_logits_fails() -> None:
    """A bonus from the raw softmax brings tokens that the nucleus excludes."""
    assert goodness_of_fit(SAMPLINGS["nucleus"], "raw bonus")[1] > 0


def test_a_bonus_without_the_residual_fails() -> None:
    assert goodness_of_fit(SAMPLINGS["plain"], "no residual")[0] < 1e-6


@pytest.mark.parametrize("name", SAMPLINGS)
def test_filters_are_those_of_transformers(name: str) -> None:
    sampling = SAMPLINGS[name]
    theirs = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        theirs.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    theirs.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        theirs.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        theirs.append(TopPLogitsWarper(sampling.top_p))
    for row in range(V):
        prefix = [row, 3, 3, 5]
        scores = theirs(torch.tensor([prefix]), TABLE[row : row + 1].clone())
        assert torch.allclose(sampling.probabilities(TABLE[row], prefix), scores[0].softmax(-1), atol=1e-6)


def test_a_certain_token_is_accepted_even_if_rounding_leaves_no_residual() -> None:
    logits = torch.tensor([[0.0, 200.0], [0.0, 200.0]])
    for seed in range(50):
        result = verify(
            Tree([0, 1], [-1, 0]), logits, [], Sampling(temperature=1.0), torch.Generator().manual_seed(seed)
        )
        assert result.path == [0, 1]
        assert result.bonus == 1


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"repetition_penalty": 0.0}]
)
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Sampling(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1e-5, 1e-38, 1e-300])
def test_near_temperature_0_the_likeliest_token_is_certain(temperature: float) -> None:
    p = Sampling(temperature, top_p=0.9).probabilities(torch.tensor([3.0, 700.0, 699.0, -torch.inf]), [])
    assert p.tolist() == [0, 1, 0, 0]
