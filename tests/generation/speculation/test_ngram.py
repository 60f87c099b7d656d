"""Look-up drafting: the text of plain decoding, whatever the text repeats, and never many wasted passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dfrot.draft.metrics import summary
from dfrot.errors import InputError
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.settings import NgramSettings
from dfrot.generation.speculation.acceptance_rates import AcceptanceRates
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.ngram_policy import ALLOWANCE, ALLOWANCE_SHARE, NgramPolicy
from dfrot.generation.speculation.policies import policy_of
from dfrot.generation.speculation.policy import AdaptivePolicy
from dfrot.generation.speculation.shape_search import MeasuredShape
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.stages.draft.generate import custom_generate, generate

GREEDY, NGRAM = Sampling(), NgramSettings()
Get = Callable[..., Target]
RANDOM = torch.randint(1, 96, (14,), generator=torch.Generator().manual_seed(9)).tolist()
PROMPTS = {"random": RANDOM, "one token": [7] * 20, "period 2": [7, 31] * 10, "short": [5], "repeated": RANDOM * 3}
OPTIONS = [MeasuredShape(TreeShape(length), 0.0, 1.0 + 0.1 * length, 1.0) for length in (1, 4, 10)]


def shapes() -> list[TreeShape | NgramPolicy]:
    free = [MeasuredShape(TreeShape(length), 0.0, 1.0, 1.0) for length in (1, 3)]  # every match is drafted from
    return [TreeShape(2), TreeShape(0), NgramPolicy(4, 0, OPTIONS), NgramPolicy(3, 0, free)]


@pytest.mark.parametrize("name", ["llama", "llama-bf16", "llama-kv4", "mistral-kv4", "gemma3-bf16", "mixtral"])
def test_greedy_text_is_that_of_plain_decoding(targets: Get, name: str) -> None:
    target, accepted = targets(name), 0
    for prompt in PROMPTS.values():
        expected = plain(target, prompt, StopCriteria(20), GREEDY).tokens
        for shape in shapes():
            out = speculative(target, NGRAM, prompt, StopCriteria(20), GREEDY, shape)
            assert out.tokens == expected
            assert out.emitted == 19
            accepted += sum(out.accepted)
    assert accepted > 0, "something was looked up"


def test_a_text_that_repeats_itself_takes_few_passes(targets: Get) -> None:
    target = targets("llama")
    forced = Sampling(processors=(lambda ids, scores: scores + 1e6 * (torch.arange(96) == 7),))
    for shape in (TreeShape(5), NgramPolicy(5, 0, OPTIONS)):
        out = speculative(target, NGRAM, [7] * 6, StopCriteria(61), forced, shape)
        assert out.tokens == [7] * 61
        assert out.rounds <= 15
        metrics = summary([out])
        assert metrics["acceptance_rate"] == 1.0
        assert metrics["tau"] == pytest.approx(60 / out.rounds)


@pytest.mark.parametrize("sampling", [Sampling(repetition_penalty=1.5), Sampling(temperature=0.8, top_k=3)])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_lengths_are_exact(targets: Get, sampling: Sampling, length: int) -> None:
    for shape in shapes():
        out = speculative(targets("llama"), NGRAM, PROMPTS["period 2"], StopCriteria(length), sampling, shape)
        assert len(out.tokens) == length
        assert (
            not sampling.greedy
            or out.tokens == plain(targets("llama"), PROMPTS["period 2"], StopCriteria(length), sampling).tokens
        )


def test_ends_inside_a_round(targets: Get) -> None:
    target, prompt = targets("llama"), PROMPTS["repeated"]
    expected = plain(target, prompt, StopCriteria(12), GREEDY).tokens

    def spell(tokens: list[int]) -> str:
        return "".join(f"<{token}>" for token in tokens)

    for index, shape in itertools.product(range(1, 9, 2), (TreeShape(3), NgramPolicy(3, 0, OPTIONS))):
        eos = StopCriteria(12, eos=frozenset([expected[index], 10_000]))
        stop = StopCriteria(12, stops=(f"{expected[index - 1]}><{expected[index]}",), decode=spell)
        for criteria in (eos, stop):
            ended = plain(target, prompt, criteria, GREEDY).tokens
            out = speculative(target, NGRAM, prompt, criteria, GREEDY, shape)
            assert out.tokens == ended
            assert out.emitted == len(ended) - 1


def test_the_context_ends_exactly(targets: Get) -> None:
    target = targets("llama")
    for room in (1, 2, 5):
        prompt = (RANDOM * 30)[: target.max_length - room]
        expected = plain(target, prompt, StopCriteria(room), GREEDY).tokens
        for shape in shapes():
            assert speculative(target, NGRAM, prompt, StopCriteria(room), GREEDY, shape).tokens == expected


def test_bad_requests_are_refused(targets: Get, kit: SimpleNamespace) -> None:
    target = targets("llama")
    with pytest.raises(InputError, match="no token"):
        speculative(target, NGRAM, [], StopCriteria(2), GREEDY, TreeShape(3))
    with pytest.raises(InputError, match="proposes chains"):
        speculative(target, NGRAM, RANDOM, StopCriteria(2), GREEDY, TreeShape(3, 2, 6))
    for drafter, policy in ((NGRAM, AdaptivePolicy(None, True, 0)), (kit.random_draft(), NgramPolicy(3, 0))):
        with pytest.raises(TypeError, match="policy"):
            speculative(target, drafter, RANDOM, StopCriteria(2), GREEDY, policy)
    for bad in ({"longest": 0}, {"most": 0}, {"most": 16}, {"longest": 17}):
        with pytest.raises(InputError):
            NgramSettings(**bad)


def test_rejected_tokens_stay_cheap() -> None:
    """Whatever is rejected: the time beyond plain decoding keeps within the allowance."""
    for match, cost in itertools.product((1, 4, 8), (1.05, 1.3, 1.9)):
        options = [MeasuredShape(TreeShape(length), 0.0, cost + 0.1 * length, 1.0) for length in (1, 10)]
        policy = NgramPolicy(10, 0, options)
        policy.start()
        for _ in range(200):
            count = policy.length(match, 10)
            if count:
                policy.record_round(match, count, 0)
            else:
                policy.record_step()
        assert policy.rounds > 0 or match < 8, "it was tried"
        assert policy.spent - policy.tokens <= ALLOWANCE + ALLOWANCE_SHARE * 200
        assert policy.spent <= 1.03 * 200


def test_the_length_follows_what_is_accepted() -> None:
    policy = NgramPolicy(10, 0, OPTIONS)
    policy.start()
    assert policy.costs == pytest.approx([1 + 0.1 * n for n in range(11)])
    assert policy.length(8, 10) >= policy.length(2, 10) > policy.length(1, 10) > 0
    assert policy.length(8, 3) <= 3
    assert policy.length(8, 0) == 0
    before = policy.length(1, 10)
    for _ in range(40):
        policy.record_round(1, 4, 4)
    assert policy.length(1, 10) > before
    for _ in range(400):
        policy.record_round(1, 1, 0)
    assert policy.length(1, 10) == 0


def test_disturbed_measurements_and_passes_that_cannot_pay() -> None:
    wild = [MeasuredShape(TreeShape(length), 0.0, verify, 1.0) for length, verify in ((1, 5.0), (2, 1.2), (4, 1.6))]
    policy = NgramPolicy(10, 0, wild)
    policy.start()
    assert policy.costs == pytest.approx([1.0, 1.2, 1.2, 1.4, 1.6])
    dear = NgramPolicy(10, 0, [MeasuredShape(TreeShape(1), 0.0, 2.5, 1.0)])
    dear.start()
    assert dear.shape is None
    assert dear.length(8, 10) == 0
    assert dear.why().startswith("plain")


def test_policies_of_drafts(kit: SimpleNamespace) -> None:
    draft = kit.random_draft()
    draft.rates = AcceptanceRates(((0.5,),))
    assert isinstance(policy_of(draft, True, 1.0), AdaptivePolicy)
    policy = policy_of(NgramSettings(most=2), True, 1.0, OPTIONS)
    assert isinstance(policy, NgramPolicy)
    policy.start()
    assert policy.shape == TreeShape(2)


def test_one_call_and_the_hook_of_transformers(targets: Get) -> None:
    target, prompt = targets("llama-kv4"), PROMPTS["repeated"]
    expected = plain(target, prompt, StopCriteria(20), GREEDY).tokens
    for shape, name in ((None, "ngram, chains up to"), (TreeShape(2), "ngram, chain 2")):
        out, how = generate(target, NGRAM, prompt, StopCriteria(20), shape=shape)
        assert out.tokens == expected
        assert name in how or how.startswith("plain")
    reports: list[str] = []
    function = custom_generate(target.model, NGRAM, report=reports.append)
    ids = torch.tensor([prompt, prompt[::-1]])
    options = {"max_new_tokens": 10, "pad_token_id": 0, "do_sample": False}
    theirs = torch.stack([target.model.generate(row[None], **options)[0] for row in ids])
    assert torch.equal(target.model.generate(ids, custom_generate=function, **options), theirs)
    assert "measured in" in reports[0]
    assert "measured in" not in reports[1], "the first row's measurements serve all"
