"""A LLaVA model around a loaded language model, from the vision part of its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.compat.attention import kept_implementation
from dfrot.compat.llava import llava_projector
from dfrot.errors import InputError, reason_of
from dfrot.vision.llava_layout import (
    CONFIG,
    PROJECTOR,
    TOWER,
    VisionConfig,
    check_language_model,
    load_vision_tensors,
    save_vision,
)

MAX_REASON = 160  # characters quoted of transformers' error messages


def compose(language_model: Any, config: VisionConfig) -> Any:
    """A LlavaForConditionalGeneration around a loaded causal language model, with a random tower and projector.

    Raises InputError for an image token outside the vocabulary."""
    from transformers import LlavaForConditionalGeneration

    text = language_model.config
    if not 0 <= config.image_token < text.vocab_size:
        raise InputError(f"image token {config.image_token} is not in the vocabulary of {text.vocab_size}")
    with kept_implementation(text):
        llava_config, parts = _modules(config, text)
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(llava_config)
    model.config.text_config = text  # the same object: it names the attention function of the packed cache
    model.model.language_model, model.lm_head = language_model.base_model, language_model.lm_head
    for name, part in parts.items():
        setattr(model.model, name, part)
    model.generation_config = language_model.generation_config
    return model.eval()


def _modules(config: VisionConfig, text: Any) -> tuple[Any, dict[str, nn.Module]]:
    """The LlavaConfig, and a random tower and projector."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig

    tower = CLIPVisionConfig(**config.tower)
    names = {"image_token_id": config.image_token, "vision_feature_layer": -1, "tie_word_embeddings": False}
    llava_config = LlavaConfig(vision_config=tower, text_config=text, **names)
    return llava_config, {
        "vision_tower": CLIPVisionModel(tower),
        "multi_modal_projector": llava_projector(llava_config),
    }


def save_vision_of(model: Any, folder: Path, config: VisionConfig, dtype: torch.dtype = torch.float32) -> None:
    """Write the tower and the projector of a composed model as a vision part."""
    state = model.model.state_dict()
    parts = {name: value for name, value in state.items() if name.startswith((TOWER, PROJECTOR))}
    save_vision(folder, {name: value.detach().to(dtype).contiguous() for name, value in parts.items()}, config)


@torch.no_grad()
def image_embeddings(folder: Path, pixels: Tensor, width: int) -> Tensor:
    """Embeddings float32 [n, patches, width] that the vision part of a folder computes of pixels float32
    [n, 3, H, W]."""
    from transformers import LlamaConfig

    config, tensors = VisionConfig.read(folder / CONFIG), load_vision_tensors(folder)
    text = LlamaConfig(hidden_size=width)
    _check_tensors(config, text, tensors, folder)
    modules = nn.ModuleDict(_modules(config, text)[1])
    modules.load_state_dict(tensors)
    patches = modules["vision_tower"].eval()(pixels).last_hidden_state[:, 1:]  # without the class token
    return modules["multi_modal_projector"](patches)  # type: ignore[no-any-return]


def attach_vision(language_model: Any, vision: Path, fingerprint: str) -> Any:
    """The VLM of a loaded language model, whose checkpoint has this fingerprint, and the vision part of a folder.

    Raises MismatchError when they were not made for each other, InputError for a damaged file."""
    config, tensors = VisionConfig.read(vision / CONFIG), load_vision_tensors(vision)
    check_language_model(vision, config, fingerprint)
    _check_tensors(config, language_model.config, tensors, vision)
    model = compose(language_model, config)
    model.model.load_state_dict(tensors, strict=False)
    return model.requires_grad_(False).eval()


def _check_tensors(config: VisionConfig, text: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    """Raise InputError unless the tensors are those that the description asks for; allocates nothing for it."""
    try:
        with kept_implementation(text), torch.device("meta"):
            parts = _modules(config, text)[1]
    except Exception as error:  # of many kinds, all of which mean that the description is invalid
        reason = reason_of(error)[:MAX_REASON]
        raise InputError(f"{folder / CONFIG}: refused by transformers ({reason}); make it again") from None
    expected = nn.ModuleDict(parts).state_dict()
    for name, value in expected.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise InputError(
                f"{folder}: tensor {name} is missing or has another shape; make the vision part again", tensor=name
            )
    if extra := sorted(set(tensors) - set(expected)):
        raise InputError(
            f"{folder}: tensor {extra[0]} does not belong to it; make the vision part again", tensor=extra[0]
        )
