"""Prompts with images: random models of the LLaVA family and others, drafts that see a part of the image tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.draft.feature_selection import FeatureChooser, FeatureSelection
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.training.loss import Losses
from dfrot.draft.training.multimodal_data import MultimodalSample
from dfrot.draft.training.multimodal_source import MultimodalSource
from dfrot.draft.training.settings import TrainSettings
from dfrot.draft.training.target_features import multimodal_features
from dfrot.draft.training.trainer import Trainer
from dfrot.errors import InputError, UnsupportedError
from dfrot.generation.multimodal import image_attention_probe, prefill_multimodal
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculative import speculative
from dfrot.generation.target import Target
from dfrot.generation.tree import TreeShape
from dfrot.stages.draft.generate import custom_generate
from dfrot.vision.image_inputs import ImageInputs

GREEDY, IMAGE, VOCAB = Sampling(), 120, 128
SHAPES = (TreeShape(3), TreeShape(4, 3, 10))
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


def gemma3() -> Any:
    """A window shorter than the prompt; images see in both directions."""
    from transformers import Gemma3Config

    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    text = {**TEXT, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "layer_types": kinds}
    vision = {**VISION, "image_size": 16, "patch_size": 4}
    marks = {"boi_token_index": 121, "eoi_token_index": 122, "image_token_index": IMAGE}
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **marks)


ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
MARKS = {"video_token_id": 121, "vision_start_token_id": 122, "vision_end_token_id": 123, "image_token_id": IMAGE}
QWEN = {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}


def qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig

    text = {**TEXT, "rope_parameters": ROPE, "rope_scaling": ROPE}
    vision = {**QWEN, "window_size": 16, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **MARKS)


def qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig

    vision = {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    text = {**TEXT, "head_dim": 8, "rope_parameters": ROPE, "rope_scaling": ROPE}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **MARKS)


GRID = {"pixel_values": (48, 96), "image_grid_thw": [[1, 8, 6]]}  # 12 tokens in a grid of 4 by 3
CONFIGS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "llava": (llava, SMALL),
    "llava-next": (llava_next, {"pixel_values": (1, 2, 3, 16, 16), "image_sizes": [[16, 16]]}),
    "pixtral": (pixtral, SIZED),
    "mistral3": (mistral3, {"pixel_values": (1, 3, 32, 32), "image_sizes": [[32, 32]]}),
    "smolvlm": (smolvlm, {"pixel_values": (1, 1, 3, 32, 32)}),
    "gemma3": (gemma3, SMALL),
    "qwen2.5-vl": (qwen2_5_vl, GRID),
    "qwen3-vl": (qwen3_vl, GRID),
}
BUILT: dict[str, Target] = {}


def target_of(name: str) -> Target:
    from transformers import AutoModelForImageTextToText

    if name not in BUILT:
        torch.manual_seed(1)
        made = AutoModelForImageTextToText.from_config(CONFIGS[name][0](), attn_implementation="sdpa")
        scaled = 1 / getattr(made.get_input_embeddings(), "scalar_embed_scale", 1.0)  # Gemma's
        with torch.no_grad():
            for key, parameter in made.named_parameters():
                if parameter.dim() == 2 and "vision" not in key and "visual" not in key:
                    parameter.normal_(0, scaled if "embed" in key else 1.5 * parameter.shape[1] ** -0.5)
        BUILT[name] = Target(made.requires_grad_(False).eval())
    return BUILT[name]


def given_of(name: str, seed: int, kinds: bool = True) -> dict[str, Any]:
    """What a processor would make of a random image. kinds: and of the prompt of `prompt_of`."""
    source, made = torch.Generator().manual_seed(seed), dict(CONFIGS[name][1])
    made["pixel_values"] = torch.randn(made["pixel_values"], generator=source)
    made |= {key: torch.tensor(value) for key, value in made.items() if isinstance(value, list)}
    told = {"gemma3": "token_type_ids", "qwen2.5-vl": "mm_token_type_ids", "qwen3-vl": "mm_token_type_ids"}
    if kinds and name in told:
        made[told[name]] = (torch.tensor([prompt_of(name, seed)]) == IMAGE).int()
    return made


def image_tokens(name: str) -> int:
    """How many tokens an image takes."""
    found = target_of(name).model.base_model.get_image_features(**given_of(name, 0, False)).pooler_output
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
        prompt, images = prompt_of(name, seed), ImageInputs(given_of(name, seed))
        sight = image_attention_probe(target, torch.tensor(prompt))
        prefill_multimodal(target, torch.tensor(prompt), images.tensors, target.start(), sight)
        assert 0 < float(sight.scores.sum()) < 1, "the attention of the language model was seen, once"
        told = plain(target, prompt, StopCriteria(15), GREEDY, images=images).tokens
        for shape in SHAPES:
            oracle, foe = (kit.scripted([*prompt, *told], right, VOCAB) for right in (True, False))
            outs = [
                speculative(target, one, prompt, StopCriteria(15), GREEDY, shape, images=images)
                for one in (draft, oracle, foe)
            ]
            assert [out.tokens for out in outs] == [told] * 3
            assert set(outs[1].accepted[:-1]) == {shape.depth}
            assert outs[2].tau == 1
        said.add(tuple(told))
    assert len(said) == 2
    assert len({token for told in said for token in told}) > 4


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2.5-vl", "qwen3-vl"])
def test_plain_is_what_generate_says(name: str) -> None:
    target, prompt, given = target_of(name), prompt_of(name, 0), given_of(name, 0)
    out = target.model.generate(torch.tensor([prompt]), **given, max_new_tokens=16, do_sample=False)
    told = plain(target, prompt, StopCriteria(16), GREEDY, images=ImageInputs(given)).tokens
    assert out[0, len(prompt) :].tolist() == told


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_hook_sees_images(name: str, kit: SimpleNamespace) -> None:
    target, prompt, given = target_of(name), prompt_of(name, 0), given_of(name, 0)
    ids, options = torch.tensor([prompt]), {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    told = target.model.generate(ids, **given, **options)
    draft = kit.scripted(told[0].tolist(), True, VOCAB)
    made: list[str] = []
    out = target.model.generate(
        ids, **given, **options, custom_generate=custom_generate(target.model, draft, SHAPES[0], 0, made.append)
    )
    assert torch.equal(out, told)
    assert float(made[0].rpartition(" ")[2]) > 3, "the draft knows what follows the image"


def test_transformers_hook_refuses_what_it_cannot_tell_apart(kit: SimpleNamespace) -> None:
    target, prompt, given = target_of("llava"), prompt_of("llava", 0), given_of("llava", 0)
    hook = custom_generate(target.model, kit.scripted(prompt, True, VOCAB), SHAPES[0])
    twice = {name: torch.cat([value, value]) for name, value in given.items()}
    embedded = {"inputs_embeds": target.embed(torch.tensor([prompt]))}
    for call, message in (({"input_ids": torch.tensor([prompt] * 2), **twice}, "batch"), (embedded, "inputs_embeds")):
        with pytest.raises(UnsupportedError, match=message):
            target.model.generate(**call, max_new_tokens=4, do_sample=False, custom_generate=hook)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_behind_an_image_positions_are_not_counted(name: str) -> None:
    """Twelve tokens in a grid of 4 by 3 take four positions; what is drafted goes on from there, the draft's own
    positions from the number of tokens."""
    target, prompt = target_of(name), prompt_of(name, 0)
    cache = target.start()
    prefill_multimodal(target, torch.tensor(prompt), given_of(name, 0), cache)
    assert cache.shift == 4 - 12
    told, other = target.verify([5, 6], [-1, 0], cache)[1], target.start()
    prefill_multimodal(target, torch.tensor(prompt), given_of(name, 0), other)
    other.shift = 0
    assert not torch.allclose(target.verify([5, 6], [-1, 0], other)[1], told), "positions must matter"


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3-vl"])
def test_any_share_of_image_tokens_is_lossless(name: str, keep: float) -> None:
    target, prompt, given = target_of(name), prompt_of(name, 3), given_of(name, 3)
    told = plain(target, prompt, StopCriteria(16), GREEDY, images=ImageInputs(given)).tokens
    for draft in (random_draft().requires_grad_(False), random_draft("eagle3").requires_grad_(False)):
        here = Target(target.model, draft.config.aux_layers)
        out = speculative(here, draft, prompt, StopCriteria(16), GREEDY, SHAPES[1], images=ImageInputs(given, keep))
        assert out.tokens == told


def eager_scores(target: Target, ids: Tensor, given: dict[str, Any], layer: int) -> Tensor:
    """The same scores from the attention matrix of a layer."""
    target.decoder.config._attn_implementation = "eager"  # type: ignore[union-attr]
    out = target.model(input_ids=ids[None], **given, output_attentions=True, use_cache=False)
    target.decoder.config._attn_implementation = "sdpa"  # type: ignore[union-attr]
    columns = (ids == IMAGE).nonzero().flatten()
    return out.attentions[layer][0].mean(0)[int(columns[-1]) + 1 :, columns].mean(0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2.5-vl"])
def test_scores_are_those_of_eager_attention_and_of_the_prompt_alone(name: str) -> None:
    target, ids = target_of(name), torch.tensor(prompt_of(name, 1))
    given, sight, again = given_of(name, 1), image_attention_probe(target, ids), image_attention_probe(target, ids)
    prefill_multimodal(target, ids, given, target.start(), sight)
    layer = 2 if name == "gemma3" else 3  # the last without a window
    assert torch.allclose(sight.scores, eager_scores(target, ids, given, layer), atol=1e-6)
    longer = torch.cat([ids, torch.tensor([5, IMAGE, 7, 8])])
    chooser = FeatureChooser(FeatureSelection.parse("none"), torch.ones(1, 4, dtype=torch.bool), 4)
    found = multimodal_features(target, longer, len(ids), given, chooser, again)
    assert torch.equal(again.scores, sight.scores), "the answer changed what is kept"
    assert torch.equal(found.embeddings[0, len(ids) :], target.embed(longer[len(ids) :])), "an answer shows nothing"


def test_what_is_kept() -> None:
    target = target_of("llava")
    ids = torch.tensor([3, *[IMAGE] * 4, 9, *[IMAGE] * 3, 8, 7])
    sight = image_attention_probe(target, ids)
    assert sight.rows.tolist() == [9, 10]
    sight.scores = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.0, 0.5, 0.1])
    assert sight.kept(0.5).tolist() == [0, 2, 3, 5, 7, 8, 9, 10]
    assert sight.kept(0.01).tolist() == [0, 2, 5, 7, 9, 10]
    assert sight.kept(0).tolist() == [0, 5, 9, 10]
    assert sight.kept(1).tolist() == list(range(11))
    with pytest.raises(InputError, match="share"):
        sight.kept(1.5)


def samples(target: Target, count: int, begin: int, name: str = "llava") -> list[MultimodalSample]:
    """Prompts with an image, and what the target says to them."""
    found = []
    for seed in range(begin, begin + count):
        prompt, given = prompt_of(name, seed), given_of(name, seed)
        told = plain(target, prompt, StopCriteria(14 + seed % 3), GREEDY, images=ImageInputs(given)).tokens
        found.append(MultimodalSample([*prompt, *told], len(prompt), given))
    return found


@pytest.mark.parametrize(
    ("name", "arch"), [("llava", "dream"), ("llava", "eagle3"), ("gemma3", "dream"), ("qwen3-vl", "dream")]
)
def test_training_on_images(name: str, arch: str, tmp_path: Path) -> None:
    draft = random_draft(arch)
    target = Target(target_of(name).model, draft.config.aux_layers)
    source = MultimodalSource(target, samples(target, 8, 0, name), samples(target, 2, 50, name))
    _, found = source.batch("held_out", torch.tensor([0, 1]))
    assert found.kept is not None
    left = image_tokens(name) // 4
    assert found.kept.shape[1] == found.last.shape[1] - left, "one of four image tokens is left out"
    options = TrainSettings(epochs=8, batch=4, evaluations=2, bf16=False, lr=4e-3)
    history = Trainer(draft, source, target.embed, target.head, options, tmp_path).run()
    assert history[-1]["held_out_kl"][0] < history[0]["held_out_kl"][0] - 0.1
    assert history[-1]["loss"] < history[1]["loss"]


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2.5-vl"])
def test_training_replays_decoding_with_pruned_images(name: str) -> None:
    """The draft's first output behind a prompt with an image, in training and in decoding; the features of the answer
    are those that verification finds."""
    target, draft = target_of(name), random_draft().requires_grad_(False)
    one = samples(target, 1, 5, name)[0]
    _, found = MultimodalSource(target, [one], [one]).batch("held_out", torch.tensor([0]))
    assert found.kept is not None
    assert found.embeddings is not None
    kept = found.kept[0]
    out = draft.train_forward(found.embeddings[:, kept], kept[None], found.last, 0).outputs[0][0]
    slots = kept[kept <= one.prompt]
    state = draft.begin(64)
    got = state.extend(found.embeddings[0, slots], found.last[0, : one.prompt], slots)
    assert torch.allclose(got[0], out[len(slots) - 1], atol=1e-5)
    assert state.position == one.prompt
    cache, answer = target.start(), one.tokens[one.prompt :]
    prefill_multimodal(target, torch.tensor(one.tokens[: one.prompt]), one.inputs, cache)
    checked = target.verify(answer, list(range(-1, len(answer) - 1)), cache)[0]
    assert torch.allclose(checked, found.last[0, one.prompt :], atol=1e-4)


def test_rows_of_a_batch_may_hold_different_numbers_of_images() -> None:
    """Losses of two samples together are those of each alone."""
    target, draft = target_of("llava"), random_draft().requires_grad_(False)
    one = samples(target, 1, 5)[0]
    prompt = [*one.tokens[: one.prompt], *prompt_of("llava", 9)]
    given = {"pixel_values": torch.cat([given_of("llava", seed)["pixel_values"] for seed in (5, 9)])}
    told = plain(target, prompt, StopCriteria(9), GREEDY, images=ImageInputs(given)).tokens
    two = MultimodalSample([*prompt, *told], len(prompt), given)
    options = TrainSettings(bf16=False)

    def loss(*held: MultimodalSample) -> Losses:
        source = MultimodalSource(target, held, held, keep=0.5)
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
            plain(here, ids, StopCriteria(2), GREEDY, images=ImageInputs(images))
        assert "\n" not in str(caught.value)
