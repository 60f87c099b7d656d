"""Prompts with images: random models of the LLaVA family and others, drafts that see a part of the image tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.draft.build import build
from dfrot.draft.config import DraftConfig
from dfrot.draft.decode import Limits, plain, speculative
from dfrot.draft.loss import Losses
from dfrot.draft.prompt import Images
from dfrot.draft.select import Chooser, Selection
from dfrot.draft.target import Target
from dfrot.draft.train import Trainer, TrainOptions
from dfrot.draft.tree import Shape
from dfrot.draft.visual import VisualSample, VisualSource
from dfrot.draft.warp import Sampling
from dfrot.errors import InputError, UnsupportedError

GREEDY, IMAGE, VOCAB = Sampling(), 120, 128
SHAPES = (Shape(3), Shape(4, 3, 10))
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
}
MERGED: dict[str, Any] = {"vision_feature_layer": -1, "image_token_id": IMAGE}
SMALL = {"pixel_values": (1, 3, 16, 16)}
SIZED = {**SMALL, "image_sizes": [[16, 16]]}


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(image_size=16, **VISION)
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), **MERGED)


def llava_next() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

    vision, points = CLIPVisionConfig(image_size=16, **VISION), [[16, 16], [16, 32], [32, 16]]
    text = LlamaConfig(**TEXT)
    return LlavaNextConfig(vision_config=vision, text_config=text, image_grid_pinpoints=points, **MERGED)


def pixtral() -> Any:
    from transformers import LlavaConfig, MistralConfig, PixtralVisionConfig

    text = MistralConfig(**TEXT, head_dim=8, sliding_window=None)
    options = {"vision_feature_select_strategy": "full", "projector_hidden_act": "gelu", **MERGED}
    return LlavaConfig(vision_config=PixtralVisionConfig(image_size=32, **VISION), text_config=text, **options)


def mistral3() -> Any:
    from transformers import Mistral3Config, MistralConfig, PixtralVisionConfig

    text = MistralConfig(**TEXT, head_dim=8, sliding_window=None)
    vision = PixtralVisionConfig(image_size=32, **VISION)
    return Mistral3Config(vision_config=vision, text_config=text, spatial_merge_size=2, **MERGED)


def smolvlm() -> Any:
    from transformers import LlamaConfig, SmolVLMConfig

    options = {"vision_config": {**VISION, "image_size": 32}, "text_config": LlamaConfig(**TEXT).to_dict()}
    return SmolVLMConfig(**options, scale_factor=2, pad_token_id=0, image_token_id=IMAGE)


CONFIGS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "llava": (llava, SMALL),
    "llava-next": (llava_next, {"pixel_values": (1, 2, 3, 16, 16), "image_sizes": [[16, 16]]}),
    "pixtral": (pixtral, SIZED),
    "mistral3": (mistral3, {"pixel_values": (1, 3, 32, 32), "image_sizes": [[32, 32]]}),
    "smolvlm": (smolvlm, {"pixel_values": (1, 1, 3, 32, 32)}),
}
BUILT: dict[str, Target] = {}


def target_of(name: str) -> Target:
    from transformers import AutoModelForImageTextToText

    if name not in BUILT:
        torch.manual_seed(1)
        made = AutoModelForImageTextToText.from_config(CONFIGS[name][0](), attn_implementation="sdpa")
        with torch.no_grad():
            for key, parameter in made.named_parameters():
                if parameter.dim() == 2 and "vision" not in key:
                    parameter.normal_(0, 1.0 if "embed" in key else 1.5 * parameter.shape[1] ** -0.5)
        BUILT[name] = Target(made.requires_grad_(False).eval())
    return BUILT[name]


def given_of(name: str, seed: int) -> dict[str, Any]:
    """What a processor would make of a random image."""
    source, made = torch.Generator().manual_seed(seed), dict(CONFIGS[name][1])
    made["pixel_values"] = torch.randn(made["pixel_values"], generator=source)
    if "image_sizes" in made:
        made["image_sizes"] = torch.tensor(made["image_sizes"])
    return made


def image_tokens(name: str) -> int:
    """How many tokens an image takes."""
    found = target_of(name).model.base_model.get_image_features(**given_of(name, 0)).pooler_output
    return int(found[0].shape[0]) if isinstance(found, (list, tuple)) else int(found.shape[-2])


def prompt_of(name: str, seed: int) -> list[int]:
    """Text, the image, text."""
    source = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 100, (10,), generator=source).tolist()
    return [*text[:4], *[IMAGE] * image_tokens(name), *text[4:]]


def random_draft(arch: str = "dream") -> Any:
    torch.manual_seed(7)
    aux = (1, 2, 3) if arch == "eagle3" else ()
    return build(DraftConfig(arch, 32, 32, 64, 4, 2, 8, VOCAB, aux_layers=aux))


@pytest.mark.parametrize("name", CONFIGS)
def test_images_reach_the_draft_and_nothing_is_lost(name: str, kit: SimpleNamespace) -> None:
    target, draft = target_of(name), random_draft().requires_grad_(False)
    said = set()
    for seed in range(2):
        prompt, images = prompt_of(name, seed), Images(given_of(name, seed))
        told = plain(target, prompt, Limits(15), GREEDY, images=images).tokens
        for shape in SHAPES:
            oracle, foe = (kit.scripted([*prompt, *told], right, VOCAB) for right in (True, False))
            outs = [
                speculative(target, one, prompt, Limits(15), GREEDY, shape, images=images)
                for one in (draft, oracle, foe)
            ]
            assert [out.tokens for out in outs] == [told] * 3
            assert set(outs[1].accepted[:-1]) == {shape.depth}
            assert outs[2].tau == 1
        said.add(tuple(told))
    assert len(said) == 2
    assert len({token for told in said for token in told}) > 4


def test_plain_is_what_generate_says() -> None:
    target, prompt, given = target_of("llava"), prompt_of("llava", 0), given_of("llava", 0)
    out = target.model.generate(torch.tensor([prompt]), **given, max_new_tokens=16, do_sample=False)
    told = plain(target, prompt, Limits(16), GREEDY, images=Images(given)).tokens
    assert out[0, len(prompt) :].tolist() == told


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_any_share_of_image_tokens_is_lossless(keep: float) -> None:
    target, prompt, given = target_of("llava"), prompt_of("llava", 3), given_of("llava", 3)
    told = plain(target, prompt, Limits(16), GREEDY, images=Images(given)).tokens
    for draft in (random_draft().requires_grad_(False), random_draft("eagle3").requires_grad_(False)):
        here = Target(target.model, draft.config.aux_layers)
        out = speculative(here, draft, prompt, Limits(16), GREEDY, SHAPES[1], images=Images(given, keep))
        assert out.tokens == told


def eager_scores(target: Target, ids: Tensor, embeddings: Tensor) -> Tensor:
    """The same scores from the attention matrix of the last layer."""
    target.decoder.config._attn_implementation = "eager"  # type: ignore[union-attr]
    out = target.decoder(inputs_embeds=embeddings[None], output_attentions=True, use_cache=False)
    target.decoder.config._attn_implementation = "sdpa"  # type: ignore[union-attr]
    columns = (ids == IMAGE).nonzero().flatten()
    return out.attentions[-1][0].mean(0)[int(columns[-1]) + 1 :, columns].mean(0)  # type: ignore[no-any-return]


def test_scores_are_those_of_eager_attention_and_of_the_prompt_alone() -> None:
    target, ids = target_of("llava"), torch.tensor(prompt_of("llava", 1))
    given, sight, again = given_of("llava", 1), target.sight(ids), target.sight(ids)
    seen = target.see(ids, given, target.start(), sight)
    assert torch.allclose(sight.scores, eager_scores(target, ids, seen.embeddings), atol=1e-6)
    longer = torch.cat([ids, torch.tensor([5, IMAGE, 7, 8])])
    chooser = Chooser(Selection.parse("none"), torch.ones(1, 4, dtype=torch.bool), 4)
    found = target.features_seen(longer, len(ids), given, chooser, again)
    assert torch.equal(again.scores, sight.scores), "the answer changed what is kept"
    assert torch.equal(found.embeddings[0, len(ids) :], target.embed(longer[len(ids) :])), "an answer shows nothing"


def test_what_is_kept() -> None:
    target = target_of("llava")
    ids = torch.tensor([3, *[IMAGE] * 4, 9, *[IMAGE] * 3, 8, 7])
    sight = target.sight(ids)
    assert sight.rows.tolist() == [9, 10]
    sight.scores = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.0, 0.5, 0.1])
    assert sight.kept(0.5).tolist() == [0, 2, 3, 5, 7, 8, 9, 10]
    assert sight.kept(0.01).tolist() == [0, 2, 5, 7, 9, 10]
    assert sight.kept(0).tolist() == [0, 5, 9, 10]
    assert sight.kept(1).tolist() == list(range(11))
    with pytest.raises(InputError, match="share"):
        sight.kept(1.5)


def samples(target: Target, count: int, begin: int) -> list[VisualSample]:
    """Prompts with an image, and what the target says to them."""
    found = []
    for seed in range(begin, begin + count):
        prompt, given = prompt_of("llava", seed), given_of("llava", seed)
        told = plain(target, prompt, Limits(14 + seed % 3), GREEDY, images=Images(given)).tokens
        found.append(VisualSample([*prompt, *told], len(prompt), given))
    return found


@pytest.mark.parametrize("arch", ["dream", "eagle3"])
def test_training_on_images(arch: str, tmp_path: Path) -> None:
    draft = random_draft(arch)
    target = Target(target_of("llava").model, draft.config.aux_layers)
    source = VisualSource(target, samples(target, 8, 0), samples(target, 2, 50))
    _, found = source.batch("held_out", torch.tensor([0, 1]))
    assert found.kept is not None
    assert found.kept.shape[1] == found.last.shape[1] - 1, "one of four image tokens is left out"
    options = TrainOptions(epochs=8, batch=4, evaluations=2, bf16=False, lr=4e-3)
    history = Trainer(draft, source, target.embed, target.head, options, tmp_path).run()
    assert history[-1]["held_out_kl"][0] < history[0]["held_out_kl"][0] - 0.1
    assert history[-1]["loss"] < history[1]["loss"]


def test_training_replays_decoding_with_pruned_images() -> None:
    """The draft's first output behind a prompt with an image, in training and in decoding."""
    target, draft = target_of("llava"), random_draft().requires_grad_(False)
    one = samples(target, 1, 5)[0]
    _, found = VisualSource(target, [one], [one]).batch("held_out", torch.tensor([0]))
    assert found.kept is not None
    assert found.embeddings is not None
    kept = found.kept[0]
    out = draft.train_forward(found.embeddings[:, kept], kept[None], found.last, 0).outputs[0][0]
    slots = kept[kept <= one.prompt]
    state = draft.begin(64)
    got = state.extend(found.embeddings[0, slots], found.last[0, : one.prompt], slots)
    assert torch.allclose(got[0], out[len(slots) - 1], atol=1e-5)
    assert state.position == one.prompt


def test_rows_of_a_batch_may_hold_different_numbers_of_images() -> None:
    """Losses of two samples together are those of each alone."""
    target, draft = target_of("llava"), random_draft().requires_grad_(False)
    one = samples(target, 1, 5)[0]
    prompt = [*one.tokens[: one.prompt], *prompt_of("llava", 9)]
    given = {"pixel_values": torch.cat([given_of("llava", seed)["pixel_values"] for seed in (5, 9)])}
    told = plain(target, prompt, Limits(9), GREEDY, images=Images(given)).tokens
    two = VisualSample([*prompt, *told], len(prompt), given)
    options = TrainOptions(bf16=False)

    def loss(*held: VisualSample) -> Losses:
        source = VisualSource(target, held, held, keep=0.5)
        rows, found = source.batch("held_out", torch.arange(len(held)))
        trainer = Trainer(draft, source, target.embed, target.head, options, Path())
        return trainer._losses(rows.tokens, rows.mask, found, found)

    alone, together = [loss(one), loss(two)], loss(one, two)
    counts = [int(sample.counts().sum()) for sample in (one, two)]
    for step in range(2):
        shares = [count - step for count in counts]
        mean = sum(part.kl[step] * share for part, share in zip(alone, shares)) / sum(shares)
        assert abs(together.kl[step] - mean) < 1e-5 * mean
    mean = sum(part.feature * count for part, count in zip(alone, counts)) / sum(counts)
    assert abs(together.feature - mean) < 1e-5 * mean


def test_what_does_not_fit_is_one_line(targets: Callable[..., Target]) -> None:
    target, prompt, given = target_of("llava"), prompt_of("llava", 0), given_of("llava", 0)
    cases = [
        (target, prompt[:5], given, InputError, "do not fit"),
        (target, prompt, {"pixel_values": torch.zeros(1, 3, 7)}, InputError, "do not fit"),
        (target, [5, IMAGE, 7], given, InputError, "do not fit"),
        (target, [5, 6, 7], {}, InputError, "no image token"),
        (targets("llama"), prompt, given, UnsupportedError, "takes no images"),
    ]
    for here, ids, images, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            plain(here, ids, Limits(2), GREEDY, images=Images(images))
        assert "\n" not in str(caught.value)
