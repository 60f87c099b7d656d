"""Small random VLMs of several architectures, with what a processor would return for an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.generation.target import Target

IMAGE, VOCAB = 120, 128
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
    """A window shorter than the prompt; image tokens attend in both directions."""
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


def target(name: str) -> Target:
    """A random VLM whose greedy text is not a loop of one token; built once."""
    from transformers import AutoModelForImageTextToText

    if name not in BUILT:
        torch.manual_seed(1)
        model = AutoModelForImageTextToText.from_config(CONFIGS[name][0](), attn_implementation="sdpa")
        scale = 1 / getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0)  # Gemma's
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.dim() == 2 and "vision" not in key and "visual" not in key:
                    parameter.normal_(0, scale if "embed" in key else 1.5 * parameter.shape[1] ** -0.5)
        BUILT[name] = Target(model.requires_grad_(False).eval())
    return BUILT[name]


def inputs(name: str, seed: int, token_types: bool = True) -> dict[str, Any]:
    """What a processor would return for a random image. token_types: include those of the prompt of `prompt`."""
    generator, tensors = torch.Generator().manual_seed(seed), dict(CONFIGS[name][1])
    tensors["pixel_values"] = torch.randn(tensors["pixel_values"], generator=generator)
    tensors |= {key: torch.tensor(value) for key, value in tensors.items() if isinstance(value, list)}
    keys = {"gemma3": "token_type_ids", "qwen2.5-vl": "mm_token_type_ids", "qwen3-vl": "mm_token_type_ids"}
    if token_types and name in keys:
        tensors[keys[name]] = (torch.tensor([prompt(name, seed)]) == IMAGE).int()
    return tensors


def image_tokens(name: str) -> int:
    """How many tokens an image takes."""
    features = target(name).model.base_model.get_image_features(**inputs(name, 0, False)).pooler_output
    return int(features[0].shape[0]) if isinstance(features, (list, tuple)) else int(features.shape[-2])


def prompt(name: str, seed: int) -> list[int]:
    """Text, the image, text."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 100, (10,), generator=generator).tolist()
    return [*text[:4], *[IMAGE] * image_tokens(name), *text[4:]]


def draft(arch: str = "dream") -> Any:
    """A random draft of these targets."""
    torch.manual_seed(7)
    aux = (1, 2, 3) if "dream" not in arch else ()
    return build(DraftConfig(arch, 32, 32, 64, 4, 2, 8, VOCAB, aux_layers=aux))
