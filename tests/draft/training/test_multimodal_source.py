"""Training on images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot.draft.training.loss import Losses
from dfrot.draft.training.multimodal_data import MultimodalSample
from dfrot.draft.training.multimodal_source import MultimodalSource
from dfrot.draft.training.settings import TrainSettings
from dfrot.draft.training.trainer import Trainer
from dfrot.generation.multimodal import prefill_multimodal
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.target import Target
from dfrot.vision.image_inputs import ImageInputs

GREEDY, IMAGE, VOCAB = Sampling(), 120, 128


def samples(
    vlms: SimpleNamespace, target: Target, count: int, begin: int, name: str = "llava"
) -> list[MultimodalSample]:
    """Prompts with an image and the target's answers."""
    built = []
    for seed in range(begin, begin + count):
        prompt, inputs = vlms.prompt(name, seed), vlms.inputs(name, seed)
        answer_tokens = plain(target, prompt, StopCriteria(14 + seed % 3), GREEDY, images=ImageInputs(inputs)).tokens
        built.append(MultimodalSample([*prompt, *answer_tokens], len(prompt), inputs))
    return built


@pytest.mark.parametrize(
    ("name", "arch"), [("llava", "dream"), ("llava", "eagle3"), ("gemma3", "dream"), ("qwen3-vl", "dream")]
)
def test_training_on_images(vlms: SimpleNamespace, name: str, arch: str, tmp_path: Path) -> None:
    draft = vlms.draft(arch)
    target = Target(vlms.target(name).model, draft.config.aux_layers)
    source = MultimodalSource(target, samples(vlms, target, 8, 0, name), samples(vlms, target, 2, 50, name))
    _, features = source.batch("held_out", torch.tensor([0, 1]))
    assert features.kept is not None
    left_out = vlms.image_tokens(name) // 4
    assert features.kept.shape[1] == features.last.shape[1] - left_out, "one of four image tokens is left out"
    options = TrainSettings(epochs=8, batch=4, evaluations=2, bf16=False, lr=4e-3)
    history = Trainer(draft, source, target.embed, target.head, options, tmp_path).run()
    assert history[-1]["held_out_kl"][0] < history[0]["held_out_kl"][0] - 0.1
    assert history[-1]["loss"] < history[1]["loss"]


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2.5-vl"])
def test_training_replays_decoding_with_pruned_images(vlms: SimpleNamespace, name: str) -> None:
    """The draft's first output behind a prompt with an image, in training and in decoding; the features of the answer
    are those of the verify pass."""
    target, draft = vlms.target(name), vlms.draft().requires_grad_(False)
    sample = samples(vlms, target, 1, 5, name)[0]
    _, features = MultimodalSource(target, [sample], [sample]).batch("held_out", torch.tensor([0]))
    assert features.kept is not None
    assert features.embeddings is not None
    kept = features.kept[0]
    out = draft.train_forward(features.embeddings[:, kept], kept[None], features.last, 0).outputs[0][0]
    slots = kept[kept <= sample.prompt]
    state = draft.begin(64)
    decoded = state.extend(features.embeddings[0, slots], features.last[0, : sample.prompt], slots)
    assert torch.allclose(decoded[0], out[len(slots) - 1], atol=1e-5)
    assert state.position == sample.prompt
    cache, answer = target.start(), sample.tokens[sample.prompt :]
    prefill_multimodal(target, torch.tensor(sample.tokens[: sample.prompt]), sample.inputs, cache)
    verified = target.verify(answer, list(range(-1, len(answer) - 1)), cache)[0]
    assert torch.allclose(verified, features.last[0, sample.prompt :], atol=1e-4)


def test_rows_of_a_batch_may_hold_different_numbers_of_images(vlms: SimpleNamespace) -> None:
    """Losses of two samples together are those of each alsample."""
    target, draft = vlms.target("llava"), vlms.draft().requires_grad_(False)
    sample = samples(vlms, target, 1, 5)[0]
    prompt = [*sample.tokens[: sample.prompt], *vlms.prompt("llava", 9)]
    inputs = {"pixel_values": torch.cat([vlms.inputs("llava", seed)["pixel_values"] for seed in (5, 9)])}
    answer_tokens = plain(target, prompt, StopCriteria(9), GREEDY, images=ImageInputs(inputs)).tokens
    two_images = MultimodalSample([*prompt, *answer_tokens], len(prompt), inputs)
    options = TrainSettings(bf16=False)

    def loss(*held_out: MultimodalSample) -> Losses:
        source = MultimodalSource(target, held_out, held_out, keep=0.5)
        rows, features = source.batch("held_out", torch.arange(len(held_out)))
        trainer = Trainer(draft, source, target.embed, target.head, options, Path())
        return trainer._losses(rows.tokens, rows.mask, features, features)

    alone, together = [loss(sample), loss(two_images)], loss(sample, two_images)
    counts = [int(s.counts().sum()) for s in (sample, two_images)]
    for step in range(2):
        shares = [count - step for count in counts]
        mean = sum(part.kl[step] * share for part, share in zip(alone, shares)) / sum(shares)
        assert abs(together.kl[step] - mean) < 1e-5 * mean
    mean = sum(part.feature * count for part, count in zip(alone, counts)) / sum(counts)
    assert abs(together.feature - mean) < 1e-5 * mean
