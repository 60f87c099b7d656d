"""Prompts with images: random VLMs of several architectures, drafts that get some of the image tokens."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dfrot.errors import InputError, UnsupportedError
from dfrot.generation.multimodal import image_attention_probe, prefill_multimodal
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.stages.draft.generate import custom_generate
from dfrot.vision.image_inputs import ImageInputs

GREEDY, IMAGE, VOCAB = Sampling(), 120, 128
NAMES = ("llava", "llava-next", "pixtral", "mistral3", "smolvlm", "gemma3", "qwen2.5-vl", "qwen3-vl")
SHAPES = (TreeShape(3), TreeShape(4, 3, 10))


@pytest.mark.parametrize("name", NAMES)
def test_images_are_lossless(vlms: SimpleNamespace, name: str, kit: SimpleNamespace) -> None:
    target, draft = vlms.target(name), vlms.draft().requires_grad_(False)
    answers = set()
    for seed in range(2):
        prompt, images = vlms.prompt(name, seed), ImageInputs(vlms.inputs(name, seed))
        probe = image_attention_probe(target, torch.tensor(prompt))
        prefill_multimodal(target, torch.tensor(prompt), images.tensors, target.start(), probe)
        assert 0 < float(probe.scores.sum()) < 1, "the attention of the language model was observed, once"
        expected = plain(target, prompt, StopCriteria(15), GREEDY, images=images).tokens
        for shape in SHAPES:
            always_right, always_wrong = (kit.scripted([*prompt, *expected], right, VOCAB) for right in (True, False))
            outs = [
                speculative(target, drafter, prompt, StopCriteria(15), GREEDY, shape, images=images)
                for drafter in (draft, always_right, always_wrong)
            ]
            assert [out.tokens for out in outs] == [expected] * 3
            assert set(outs[1].accepted[:-1]) == {shape.depth}
            assert outs[2].tau == 1
        answers.add(tuple(expected))
    assert len(answers) == 2
    assert len({token for answer in answers for token in answer}) > 4


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2.5-vl", "qwen3-vl"])
def test_plain_equals_transformers_generate(vlms: SimpleNamespace, name: str) -> None:
    target, prompt, inputs = vlms.target(name), vlms.prompt(name, 0), vlms.inputs(name, 0)
    out = target.model.generate(torch.tensor([prompt]), **inputs, max_new_tokens=16, do_sample=False)
    expected = plain(target, prompt, StopCriteria(16), GREEDY, images=ImageInputs(inputs)).tokens
    assert out[0, len(prompt) :].tolist() == expected


@pytest.mark.parametrize("name", NAMES)
def test_transformers_hook_with_images(vlms: SimpleNamespace, name: str, kit: SimpleNamespace) -> None:
    target, prompt, inputs = vlms.target(name), vlms.prompt(name, 0), vlms.inputs(name, 0)
    ids, options = torch.tensor([prompt]), {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = target.model.generate(ids, **inputs, **options)
    draft = kit.scripted(expected[0].tolist(), True, VOCAB)
    reports: list[str] = []
    out = target.model.generate(
        ids, **inputs, **options, custom_generate=custom_generate(target.model, draft, SHAPES[0], 0, reports.append)
    )
    assert torch.equal(out, expected)
    assert float(reports[0].rpartition(" ")[2]) > 3, "the draft knows what follows the image"


def test_transformers_hook_refuses_ambiguous_batches(vlms: SimpleNamespace, kit: SimpleNamespace) -> None:
    target, prompt, inputs = vlms.target("llava"), vlms.prompt("llava", 0), vlms.inputs("llava", 0)
    hook = custom_generate(target.model, kit.scripted(prompt, True, VOCAB), SHAPES[0])
    twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
    embedded = {"inputs_embeds": target.embed(torch.tensor([prompt]))}
    for call, message in (({"input_ids": torch.tensor([prompt] * 2), **twice}, "batch"), (embedded, "inputs_embeds")):
        with pytest.raises(UnsupportedError, match=message):
            target.model.generate(**call, max_new_tokens=4, do_sample=False, custom_generate=hook)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_positions_behind_an_image_of_three_dimensions(vlms: SimpleNamespace, name: str) -> None:
    """Twelve tokens in a grid of 4 by 3 take four positions; drafting continues from there, while the
    draft's own positions continue from the number of tokens."""
    target, prompt = vlms.target(name), vlms.prompt(name, 0)
    cache = target.start()
    prefill_multimodal(target, torch.tensor(prompt), vlms.inputs(name, 0), cache)
    assert cache.shift == 4 - 12
    expected, other = target.verify([5, 6], [-1, 0], cache)[1], target.start()
    prefill_multimodal(target, torch.tensor(prompt), vlms.inputs(name, 0), other)
    other.shift = 0
    assert not torch.allclose(target.verify([5, 6], [-1, 0], other)[1], expected), "positions must matter"


def test_prompts_and_images_that_do_not_fit(vlms: SimpleNamespace, targets: Callable[..., Target]) -> None:
    target, prompt, inputs = vlms.target("llava"), vlms.prompt("llava", 0), vlms.inputs("llava", 0)
    cases = [
        (target, prompt[:5], inputs, InputError, "do not fit"),
        (target, prompt, {"pixel_values": torch.zeros(1, 3, 7)}, InputError, "do not fit"),
        (target, [5, IMAGE, 7], inputs, InputError, "do not fit"),
        (target, [5, 6, 7], {}, InputError, "no image token"),
        (targets("llama"), prompt, inputs, UnsupportedError, "takes no images"),
    ]
    for here, ids, images, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            plain(here, ids, StopCriteria(2), GREEDY, images=ImageInputs(images))
        assert "\n" not in str(caught.value)
