"""Speculative decoding says what plain decoding says, whatever the draft proposes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dfrot.draft.metrics import classify, first_difference, summary
from dfrot.errors import InputError
from dfrot.generation.output import GenerationOutput, StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculative import speculative
from dfrot.generation.target import Target
from dfrot.generation.tree import TreeShape

GREEDY = Sampling()
SHAPES = {"chain": TreeShape(3), "tree": TreeShape(4, 3, 10)}
TARGETS = ["llama", "llama-bf16", "llama-kv4", "mistral", "mistral-kv4", "qwen2", "qwen3-kv4"]
TARGETS += ["mixed", "mixed-kv4", "gemma2", "gemma2-bf16", "gemma2-kv4", "gemma3", "gemma3-bf16", "gemma3-kv4"]
TARGETS += ["mixtral", "mixtral-bf16", "qwen3_moe-kv4"]
Get = Callable[..., Target]


def prompts(count: int, length: int = 14) -> list[list[int]]:
    source = torch.Generator().manual_seed(9)
    return [torch.randint(1, 96, (length + n % 3,), generator=source).tolist() for n in range(count)]


@pytest.mark.parametrize("name", [*TARGETS, "olmoe", "olmoe-kv4", "olmo2-kv4", "phi3", "phi3-kv4", "granite-kv4"])
def test_a_block_is_its_rows_to_the_last_bit(targets: Get, name: str) -> None:
    target = targets(name)
    prompt = prompts(1)[0]
    tokens, parents = [5, 9, 3, 5, 7, 2, 8, 1], [-1, 0, 0, 1, 1, 2, 3, 6]
    with torch.inference_mode():
        cache = target.start()
        target.prefill(torch.tensor(prompt), cache)
        _, block = target.verify(tokens, parents, cache)
        for leaf in (4, 5, 7):
            path = [leaf]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            target.keep(cache, len(prompt), int(cache.get_seq_length()) - len(prompt), [])
            alone = torch.stack([target.step(tokens[node], cache) for node in path[::-1]])
            assert torch.equal(block[path[::-1]], alone)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TARGETS)
def test_greedy_identity_with_a_random_draft(targets: Get, kit: SimpleNamespace, name: str, shape: str) -> None:
    target, draft = targets(name), kit.random_draft()
    seen = set()
    for prompt in prompts(4):
        told = plain(target, prompt, StopCriteria(24), GREEDY).tokens
        assert speculative(target, draft, prompt, StopCriteria(24), GREEDY, SHAPES[shape]).tokens == told
        seen |= set(told)
    assert len(seen) > 10, "a target that repeats itself proves nothing"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["llama", "llama-kv4", "gemma2-kv4", "gemma3-bf16", "mixed-kv4", "mixtral-kv4"])
def test_oracle_and_adversary(targets: Get, kit: SimpleNamespace, name: str, shape: str) -> None:
    target, prompt = targets(name), prompts(1)[0]
    depth = SHAPES[shape].depth
    limits = StopCriteria(1 + 5 * (depth + 1))  # the first token, then five full rounds
    told = plain(target, prompt, limits, GREEDY).tokens
    right = speculative(target, kit.scripted([*prompt, *told]), prompt, limits, GREEDY, SHAPES[shape])
    wrong = speculative(target, kit.scripted([*prompt, *told], False), prompt, limits, GREEDY, SHAPES[shape])
    assert right.tokens == wrong.tokens == told
    assert right.tau == depth + 1
    assert wrong.tau == 1
    assert summary([right])["accept_at_position"] == [1.0] * depth


@pytest.mark.parametrize("shape", SHAPES)
def test_eagle3(targets: Get, kit: SimpleNamespace, shape: str) -> None:
    target, draft = targets("llama-kv4", (1, 2, 3)), kit.random_draft("eagle3")
    for prompt in prompts(3):
        told = plain(target, prompt, StopCriteria(20), GREEDY).tokens
        assert speculative(target, draft, prompt, StopCriteria(20), GREEDY, SHAPES[shape]).tokens == told


def test_plain_is_what_generate_says(targets: Get) -> None:
    for name in ("llama-bf16", "llama-kv4"):
        target, prompt = targets(name), prompts(1)[0]
        out = target.model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert out[0, len(prompt) :].tolist() == plain(target, prompt, StopCriteria(20), GREEDY).tokens


def no_repeated_parity(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A processor that forbids a token of the same parity as the one before."""
    return scores - 9.0 * (ids[0, -1] % 2 == torch.arange(96) % 2)


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(repetition_penalty=1.5), Sampling(processors=(no_repeated_parity,))]
)
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_lengths_are_exact_and_processors_see_their_prefix(
    targets: Get, kit: SimpleNamespace, sampling: Sampling, length: int
) -> None:
    target, prompt = targets("llama"), prompts(1)[0]
    told = plain(target, prompt, StopCriteria(length), sampling).tokens
    assert len(told) == length
    for draft in (kit.random_draft(), kit.scripted([*prompt, *told])):
        for shape in SHAPES.values():
            assert speculative(target, draft, prompt, StopCriteria(length), sampling, shape).tokens == told


@pytest.mark.parametrize("shape", SHAPES)
def test_eos_and_stop_strings_inside_an_accepted_block(targets: Get, kit: SimpleNamespace, shape: str) -> None:
    target, prompt = targets("llama"), prompts(1)[0]
    told = plain(target, prompt, StopCriteria(40), GREEDY).tokens
    draft = kit.scripted([*prompt, *told])

    def spell(tokens: list[int]) -> str:
        return "".join(f"<{token}>" for token in tokens)

    for place in range(1, 9):
        eos = StopCriteria(40, eos=frozenset([told[place], 10_000]))
        stop = StopCriteria(40, stops=(f"{told[place - 1]}><{told[place]}", "never"), decode=spell)
        for limits in (eos, stop):
            ended = plain(target, prompt, limits, GREEDY).tokens
            assert len(ended) <= place + 1
            assert ended == told[: len(ended)]
            out = speculative(target, draft, prompt, limits, GREEDY, SHAPES[shape])
            assert out.tokens == ended
            assert out.emitted == len(ended) - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_context_ends_exactly(targets: Get, kit: SimpleNamespace, shape: str) -> None:
    target = targets("llama")
    prompt = prompts(1)[0] * 17
    limits = StopCriteria(256 - len(prompt))
    told = plain(target, prompt, limits, GREEDY).tokens
    out = speculative(target, kit.scripted([*prompt, *told]), prompt, limits, GREEDY, SHAPES[shape])
    assert out.tokens == told
    with pytest.raises(InputError, match="context"):
        plain(target, prompt, StopCriteria(limits.max_new_tokens + 1), GREEDY)


def test_bad_prompts_are_refused(targets: Get) -> None:
    with pytest.raises(InputError, match="no token"):
        plain(targets("llama"), [], StopCriteria(2), GREEDY)
    with pytest.raises(InputError, match="vocabulary"):
        plain(targets("llama"), [3, 96], StopCriteria(2), GREEDY)


def test_differences_are_found_and_classified(targets: Get) -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
    target, prompt = targets("llama"), prompts(1)[0]
    told = plain(target, prompt, StopCriteria(8), GREEDY).tokens
    found = classify(target, prompt, told, 5, 3)
    assert found["block_difference"] == 0.0
    assert found["class"] == "BUG"


def test_metrics_count_what_they_say() -> None:
    out = GenerationOutput(tokens=[0] * 8, rounds=4, emitted=7, accepted=[2, 0, 1, 0])
    told = summary([out])
    assert told["tau"] == 7 / 4
    assert told["accepted_per_round"] == 3 / 4
    assert told["accept_at_position"] == [0.5, 0.25]
    assert told["conditional_accept_at_position"] == [0.5, 0.5]
