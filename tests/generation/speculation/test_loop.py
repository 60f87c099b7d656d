"""Speculative decoding gives the text of plain decoding, whatever the draft proposes."""

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
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target

GREEDY = Sampling()
SHAPES = {"chain": TreeShape(3), "tree": TreeShape(4, 3, 10)}
TARGETS = ["llama", "llama-bf16", "llama-kv4", "mistral", "mistral-kv4", "qwen2", "qwen3-kv4"]
TARGETS += ["mixed", "mixed-kv4", "gemma2", "gemma2-bf16", "gemma2-kv4", "gemma3", "gemma3-bf16", "gemma3-kv4"]
TARGETS += ["mixtral", "mixtral-bf16", "qwen3_moe-kv4", "longrope-kv4"]
Get = Callable[..., Target]


def prompts(count: int, length: int = 14) -> list[list[int]]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(1, 96, (length + n % 3,), generator=generator).tolist() for n in range(count)]


@pytest.mark.parametrize(
    "name", [*TARGETS, "olmoe", "olmoe-kv4", "olmo2-kv4", "phi3", "phi3-kv4", "granite-kv4", "longrope"]
)
def test_rows_of_a_verify_pass_have_the_bits_of_single_steps(targets: Get, name: str) -> None:
    target = targets(name)
    prompt = prompts(1)[0]
    tokens, parents = [5, 9, 3, 5, 7, 2, 8, 1], [-1, 0, 0, 1, 1, 2, 3, 6]
    with torch.inference_mode():
        cache = target.start()
        target.prefill(torch.tensor(prompt), cache)
        _, together = target.verify(tokens, parents, cache)
        for leaf in (4, 5, 7):
            path = [leaf]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            target.keep(cache, len(prompt), int(cache.get_seq_length()) - len(prompt), [])
            alone = torch.stack([target.step(tokens[node], cache) for node in path[::-1]])
            assert torch.equal(together[path[::-1]], alone)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TARGETS)
def test_greedy_identity_with_a_random_draft(targets: Get, kit: SimpleNamespace, name: str, shape: str) -> None:
    target, draft = targets(name), kit.random_draft()
    distinct = set()
    for prompt in prompts(4):
        expected = plain(target, prompt, StopCriteria(24), GREEDY).tokens
        assert speculative(target, draft, prompt, StopCriteria(24), GREEDY, SHAPES[shape]).tokens == expected
        distinct |= set(expected)
    assert len(distinct) > 10, "a target that repeats itself proves nothing"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["llama", "llama-kv4", "gemma2-kv4", "gemma3-bf16", "mixed-kv4", "mixtral-kv4"])
def test_always_right_and_always_wrong_drafts(targets: Get, kit: SimpleNamespace, name: str, shape: str) -> None:
    target, prompt = targets(name), prompts(1)[0]
    depth = SHAPES[shape].depth
    stop_criteria = StopCriteria(1 + 5 * (depth + 1))  # the first token, then five full rounds
    expected = plain(target, prompt, stop_criteria, GREEDY).tokens
    right = speculative(target, kit.scripted([*prompt, *expected]), prompt, stop_criteria, GREEDY, SHAPES[shape])
    wrong = speculative(target, kit.scripted([*prompt, *expected], False), prompt, stop_criteria, GREEDY, SHAPES[shape])
    assert right.tokens == wrong.tokens == expected
    assert right.tau == depth + 1
    assert wrong.tau == 1
    assert summary([right])["accept_at_position"] == [1.0] * depth


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arch", ["eagle3", "dflash", "dream-layers"])
def test_drafts_that_read_layers(targets: Get, kit: SimpleNamespace, arch: str, shape: str) -> None:
    target, draft = targets("llama-kv4", (1, 2, 3)), kit.random_draft(arch)
    for prompt in prompts(3):
        expected = plain(target, prompt, StopCriteria(20), GREEDY).tokens
        assert speculative(target, draft, prompt, StopCriteria(20), GREEDY, SHAPES[shape]).tokens == expected


def test_plain_equals_transformers_generate(targets: Get) -> None:
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
def test_lengths_are_exact_and_processors_get_their_prefix(
    targets: Get, kit: SimpleNamespace, sampling: Sampling, length: int
) -> None:
    target, prompt = targets("llama"), prompts(1)[0]
    expected = plain(target, prompt, StopCriteria(length), sampling).tokens
    assert len(expected) == length
    for draft in (kit.random_draft(), kit.scripted([*prompt, *expected])):
        for shape in SHAPES.values():
            assert speculative(target, draft, prompt, StopCriteria(length), sampling, shape).tokens == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_eos_and_stop_strings_inside_a_round(targets: Get, kit: SimpleNamespace, shape: str) -> None:
    target, prompt = targets("llama"), prompts(1)[0]
    expected = plain(target, prompt, StopCriteria(40), GREEDY).tokens
    draft = kit.scripted([*prompt, *expected])

    def spell(tokens: list[int]) -> str:
        return "".join(f"<{token}>" for token in tokens)

    for index in range(1, 9):
        eos = StopCriteria(40, eos=frozenset([expected[index], 10_000]))
        stop = StopCriteria(40, stops=(f"{expected[index - 1]}><{expected[index]}", "never"), decode=spell)
        for stop_criteria in (eos, stop):
            ended = plain(target, prompt, stop_criteria, GREEDY).tokens
            assert len(ended) <= index + 1
            assert ended == expected[: len(ended)]
            out = speculative(target, draft, prompt, stop_criteria, GREEDY, SHAPES[shape])
            assert out.tokens == ended
            assert out.emitted == len(ended) - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_context_ends_exactly(targets: Get, kit: SimpleNamespace, shape: str) -> None:
    target = targets("llama")
    prompt = prompts(1)[0] * 17
    stop_criteria = StopCriteria(256 - len(prompt))
    expected = plain(target, prompt, stop_criteria, GREEDY).tokens
    out = speculative(target, kit.scripted([*prompt, *expected]), prompt, stop_criteria, GREEDY, SHAPES[shape])
    assert out.tokens == expected
    with pytest.raises(InputError, match="context"):
        plain(target, prompt, StopCriteria(stop_criteria.max_new_tokens + 1), GREEDY)


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
    expected = plain(target, prompt, StopCriteria(8), GREEDY).tokens
    difference = classify(target, prompt, expected, 5, 3)
    assert difference["block_difference"] == 0.0
    assert difference["class"] == "BUG"


def test_summary_of_metrics() -> None:
    out = GenerationOutput(tokens=[0] * 8, rounds=4, emitted=7, accepted=[2, 0, 1, 0])
    metrics = summary([out])
    assert metrics["tau"] == 7 / 4
    assert metrics["accepted_per_round"] == 3 / 4
    assert metrics["accept_at_position"] == [0.5, 0.25]
    assert metrics["conditional_accept_at_position"] == [0.5, 0.5]
