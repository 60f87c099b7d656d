"""Greedy speculative decoding of packed W4A4KV4 targets on the native decoder: token for token the plain output,
with a trained, a random, an always right and an always wrong draft, in chains and trees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.draft.models.base import Draft
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.training.init_from_target import init_from_target
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.runtime.load import load_model
from dfrot.vision.image_inputs import ImageInputs
from dfrot_kernels import native

SHAPES = (TreeShape(3), TreeShape(4, 3, 10))
GREEDY = Sampling()
IMAGES = 50


@dataclass
class Case:
    """A target, prompts for it, their images, and the plain output of each."""

    target: Target
    prompts: list[list[int]]
    images: list[ImageInputs | None]
    expected: list[list[int]]

    @classmethod
    def of(
        cls, target: Target, prompts: list[list[int]], count: int, images: list[ImageInputs | None] | None = None
    ) -> Case:
        all_images = images or [None] * len(prompts)
        expected = [
            plain(target, prompt, StopCriteria(count), GREEDY, images=image).tokens
            for prompt, image in zip(prompts, all_images)
        ]
        return cls(target, prompts, all_images, expected)


def own_draft(target: Target) -> Draft:
    """An untrained draft that begins with the target's own blocks."""
    config, heads = target.config, int(target.config.num_attention_heads)
    size, groups = int(config.hidden_size), int(config.num_key_value_heads)
    torch.manual_seed(0)
    config_of_draft = DraftConfig("dream", size, size, size, heads, groups, size // heads, target.vocab_size)
    draft = build(config_of_draft)
    init_from_target(draft, target)
    return draft.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A random packed checkpoint: five prompts, 32 tokens each."""
    folder = random_checkpoint(tmp_path_factory.mktemp("target") / "packed", preset("tiny"), "w4a4kv4", 3)
    target, generator = Target(load_model(folder)), torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 320, (9 + n,), generator=generator).tolist() for n in range(5)]
    return Case.of(target, prompts, 32)


def check(case: Case, draft: Draft | None, kit: SimpleNamespace, shape: TreeShape, right: bool = True) -> float:
    """Every output is the plain one. draft None: one that always proposes the right token, or (not `right`) always a
    wrong one. Returns the acceptance length."""
    emitted = rounds = 0
    for prompt, images, expected in zip(case.prompts, case.images, case.expected):
        drafter = draft or kit.scripted([*prompt, *expected], right, case.target.vocab_size)
        out = speculative(case.target, drafter, prompt, StopCriteria(len(expected)), GREEDY, shape, images=images)
        assert out.tokens == expected
        if draft is None:  # every round, but for the last one, which the length cuts off
            assert set(out.accepted[:-1]) <= {shape.depth if right else 0}
        emitted += out.emitted
        rounds += out.rounds
    return emitted / rounds


def check_all(case: Case, drafts: list[Draft], kit: SimpleNamespace) -> None:
    distinct = {token for tokens in case.expected for token in tokens}
    assert len(distinct) > 10, "a target that repeats itself proves nothing"
    served = case.target.native.steps if case.target.native is not None else 0
    for shape in SHAPES:
        for draft in drafts:
            check(case, draft, kit, shape)
        assert check(case, None, kit, shape) > shape.depth
        assert check(case, None, kit, shape, right=False) == 1
    if native.active():
        assert case.target.native.steps > served, "the native decoder verifies the draft tokens"
        assert not case.target.native.report()["unfit"]


def test_small_packed_target(small: Case, kit: SimpleNamespace) -> None:
    check_all(small, [own_draft(small.target)], kit)


@pytest.mark.parametrize("past", [9, 500, 700])
def test_rows_of_any_number_have_the_bits_of_single_steps(past: int, tmp_path: Path) -> None:
    """Eight heads per key head, short and long caches: a pass of n rows is n passes, to the last bit."""
    shape = {**preset("tiny"), "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16}
    target = Target(load_model(random_checkpoint(tmp_path / "packed", shape, "w4a4kv4", 1)))
    generator = torch.Generator().manual_seed(past)
    prompt, tokens = torch.randint(3, 320, (past,), generator=generator), list(range(30, 50))
    with torch.inference_mode():
        cache = target.start()
        target.prefill(prompt, cache)
        alone = torch.stack([target.step(token, cache) for token in tokens])
        target.keep(cache, past, len(tokens), [])
        for rows in (2, 5, 16, 20):
            _, together = target.verify(tokens[:rows], list(range(-1, rows - 1)), cache)
            target.keep(cache, past, rows, [])
            assert torch.equal(together, alone[:rows])


def test_the_op_by_op_path_is_lossless_too(small: Case, kit: SimpleNamespace) -> None:
    """The path of targets that the native decoder does not serve."""
    decoder = small.target.model.dfq_native
    unfit, decoder.unfit = decoder.unfit, "for this test"
    try:
        target = Target(small.target.model)
        case = Case.of(target, small.prompts[:3], 20)
        assert target.native is None
        for shape in SHAPES:
            assert check(case, None, kit, shape) > shape.depth
            assert check(case, None, kit, shape, right=False) == 1
    finally:
        decoder.unfit = unfit


@torch.inference_mode()
@pytest.mark.skipif(not native.active(), reason="no native library")
def test_layers_that_a_draft_reads_come_from_the_native_decoder(small: Case, kit: SimpleNamespace) -> None:
    """Prompt, chain and trees: what hooks on the layers record, up to single codes; text and steps are served natively,
    and the features of a row are those that it has alone."""
    target = Target(small.target.model, (1, 2))
    prompt, tokens = torch.tensor(small.prompts[0]), [7, 8, 9, 10, 11]
    assert target.native is not None
    for parents in ([-1, 0, 1, 2, 3], [-1, 0, 0, 1, 2]):
        rows = []
        for by_modules in (False, True):
            cache = target.start()
            served = target.native.steps
            features, _ = target.prefill(prompt, cache)
            verify = target._verify_by_modules if by_modules else target.verify
            rows.append(torch.cat([features, verify(tokens, parents, cache)[0]]))
            assert target.native.steps == served + (1 if by_modules else 2)
        width = rows[0].shape[1] // 2
        assert rows[0].shape == (len(prompt) + 5, 2 * int(target.config.hidden_size))
        assert (rows[0] - rows[1]).float().norm() < 0.05 * rows[1].float().norm()
        assert (rows[0][:, :width] - rows[0][:, width:]).float().norm() > 0.1 * rows[0].float().norm(), "two layers"
    cache, alone = target.start(), []
    target.prefill(prompt, cache)
    for token in tokens:
        alone.append(target.verify([token], [-1], cache)[0])
    cache = target.start()
    target.prefill(prompt, cache)
    assert torch.equal(torch.cat(alone), target.verify(tokens, [-1, 0, 1, 2, 3], cache)[0])
    case = Case.of(target, small.prompts[:2], 20)
    for shape in SHAPES:
        served = target.native.steps
        assert check(case, None, kit, shape) > shape.depth
        assert target.native.steps > served


def packed_and_drafted(model: str, folder: Path, dataset: str, seqlen: int) -> tuple[Path, Path]:
    """A shipped model rotated and in W4A4KV4, and a draft trained for it."""
    from dfrot.draft.training.settings import TrainSettings
    from dfrot.hub import resolve_model
    from dfrot.quant.scheme import QuantScheme
    from dfrot.stages.draft.settings import DataSettings, DraftSettings
    from dfrot.stages.draft.train import train
    from dfrot.stages.quantize.run import quantize
    from dfrot.stages.quantize.settings import QuantizeSettings
    from dfrot.stages.rotate.run import rotate
    from dfrot.stages.rotate.settings import RotateSettings

    rotate(resolve_model(model), folder / "rotated", RotateSettings(method="hadamard", dataset="stdlib"))
    settings = QuantizeSettings(scheme=QuantScheme.parse("w4a4kv4"), algorithm="rtn")
    quantize(folder / "rotated", None, folder / "packed", settings)
    data = DataSettings(dataset=dataset, samples=64, held_out=4, seqlen=seqlen)
    options = TrainSettings(epochs=1, batch=4, evaluations=1)
    train(folder / "packed", folder / "draft", DraftSettings(data=data, train=options))
    return folder / "packed", folder / "draft"


@pytest.mark.slow
def test_fifty_prompts_of_the_reference_model(tmp_path: Path, kit: SimpleNamespace) -> None:
    """50 prompts, 128 tokens, the shipped model rotated and packed in W4A4KV4, a draft trained for it among others."""
    from dfrot.data.tokenizer import load_tokenizer
    from dfrot.draft.store import load_draft
    from dfrot.stages.draft.prompts import load_prompts

    packed, draft = packed_and_drafted("reference", tmp_path, "stdlib", 128)
    target = Target(load_model(packed))
    prompts = load_prompts("stdlib", load_tokenizer(packed), 50, 64)
    case = Case.of(target, prompts, 128)
    assert sum(map(len, case.expected)) == 50 * 128
    trained = load_draft(draft)
    check_all(case, [trained, own_draft(target)], kit)
    assert check(case, trained, kit, SHAPES[0]) > 1.2


@pytest.mark.slow
def test_fifty_images_of_the_reference_vlm(
    tmp_path: Path, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 questions about images, 128 tokens each, past the end of the answer."""
    from huggingface_hub import constants

    from dfrot.draft.store import load_draft
    from dfrot.generation.load_target import load_target
    from dfrot.vision.prompts import load_questions, prompt_reader

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub"))  # where the VLM is put together
    packed, draft = packed_and_drafted("reference-vlm", tmp_path, "shapes", 64)
    target = load_target(packed)
    questions = load_questions("shapes", prompt_reader(packed), IMAGES)
    case = Case.of(target, [question.ids for question in questions], 128, [question.images for question in questions])
    assert sum(map(len, case.expected)) == IMAGES * 128
    trained = load_draft(draft)
    check_all(case, [trained, own_draft(target)], kit)
    assert check(case, trained, kit, SHAPES[0]) > 1.2
