"""A language model that sees: a vision tower and a projector of the LLaVA layout beside an ordinary dfq folder.

The language model is rotated, calibrated and quantized like any other; of what is added only the projector's last
linear writes to the residual stream, so R1 goes into its weight and bias. Both parts know each other by fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import read_header, read_tensor
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.files import read_json, write_json
from dfrot.rotation.rotation import FILE as ROTATION
from dfrot.rotation.rotation import Rotation
from dfrot.writer import SafetensorsWriter, TensorPlan

CONFIG, WEIGHTS = "vision.json", "vision"
TOWER, PROJECTOR = "vision_tower.", "multi_modal_projector."
LAST = f"{PROJECTOR}linear_2"


@dataclass(frozen=True)
class VisionConfig:
    """tower: arguments of a CLIPVisionConfig. image_token: id that stands for image embeddings in a prompt.
    language_model: fingerprint of the folder that these weights fit, empty before they are rotated."""

    tower: dict[str, Any]
    image_token: int
    language_model: str = ""

    @classmethod
    def read(cls, file: Path) -> VisionConfig:
        found = read_json(file)
        if not isinstance(found, dict) or set(found) != {"tower", "image_token", "language_model"}:
            raise InputError(f"{file}: is not the description of a vision part; make it again")
        return cls(**found)


def compose(language_model: Any, config: VisionConfig) -> Any:
    """A LlavaForConditionalGeneration around a loaded causal language model, with a random tower and projector."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    text = language_model.config
    if not 0 <= config.image_token < text.vocab_size:
        raise InputError(f"image token {config.image_token} is not in the vocabulary of {text.vocab_size}")
    attention = text._attn_implementation  # building the skeleton would choose anew
    tower = CLIPVisionConfig(**config.tower)
    both = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=config.image_token,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(both)
    model.config.text_config = text  # the very object: it names the attention that serves the packed cache
    text._attn_implementation = attention
    model.model.language_model, model.lm_head = language_model.base_model, language_model.lm_head
    model.model.vision_tower = CLIPVisionModel(tower)
    model.model.multi_modal_projector = LlavaMultiModalProjector(both)
    model.generation_config = language_model.generation_config
    return model.eval()


def _parts(model: Any) -> dict[str, Tensor]:
    state = model.model.state_dict()
    return {name: value for name, value in state.items() if name.startswith((TOWER, PROJECTOR))}


def save_vision(folder: Path, tensors: dict[str, Tensor], config: VisionConfig) -> None:
    """Write `vision.json` and `vision.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = [TensorPlan(name, value.dtype, tuple(value.shape)) for name, value in sorted(tensors.items())]
    writer = SafetensorsWriter(folder, plan, WEIGHTS)
    for name, value in tensors.items():
        writer.write(name, value)
    writer.sync()
    write_json(folder / CONFIG, vars(config))


def save_vision_of(model: Any, folder: Path, config: VisionConfig) -> None:
    """The tower and the projector of a composed model."""
    save_vision(folder, {name: value.detach().contiguous() for name, value in _parts(model).items()}, config)


def rotate_vision(vision: Path, rotated: Path, fits: str, out: Path) -> None:
    """The vision part in the basis of `rotated`, a result of dfq rotate; fits: fingerprint of the folder that it will
    serve, rotated or quantized from there. x' = x R1: the projector's last weight becomes R1^T W, its bias b R1."""
    config, tensors = VisionConfig.read(vision / CONFIG), _load(vision)
    if config.language_model:
        raise UnsupportedError(f"{vision}: is rotated already; give the vision part of the original model")
    r1 = Rotation.load(rotated / ROTATION, "R1").matrix
    weight = tensors[f"{LAST}.weight"]
    if weight.shape[0] != r1.shape[0]:
        raise MismatchError(f"{vision}: writes width {weight.shape[0]}, the rotation of {rotated} has {r1.shape[0]}")
    tensors[f"{LAST}.weight"] = (r1.T @ weight.double()).to(weight.dtype)
    tensors[f"{LAST}.bias"] = (tensors[f"{LAST}.bias"].double() @ r1).to(weight.dtype)
    save_vision(out, tensors, VisionConfig(config.tower, config.image_token, fits))


def _load(folder: Path) -> dict[str, Tensor]:
    file = folder / f"{WEIGHTS}.safetensors"
    if not file.is_file():
        raise InputError(f"{folder}: no {file.name}; is this the vision part of a model?")
    return {name: read_tensor(entry) for name, entry in read_header(file).items()}


def join(language_model: Any, vision: Path, fingerprint: str) -> Any:
    """The model that sees: a loaded language model, whose folder has this fingerprint, and its vision part. Raises
    MismatchError when they were not made for each other, InputError for a damaged file."""
    config, tensors = VisionConfig.read(vision / CONFIG), _load(vision)
    if config.language_model and config.language_model != fingerprint:
        raise MismatchError(f"{vision}: was made for another language model; rotate the vision part for this one")
    model = compose(language_model, config)
    expected = _parts(model)
    for name, value in expected.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise InputError(f"{vision}: tensor {name} is missing or has another shape; make the vision part again")
    if extra := sorted(set(tensors) - set(expected)):
        raise InputError(f"{vision}: tensor {extra[0]} does not belong to it; make the vision part again")
    model.model.load_state_dict(tensors, strict=False)
    return model.requires_grad_(False).eval()
