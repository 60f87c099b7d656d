"""A language model that sees: a vision tower and a projector of the LLaVA layout in an ordinary dfq folder.

The language model is rotated, calibrated and quantized like any other; of what is added only the projector's last
linear writes to the residual stream, so R1 goes into its weight and bias. The vision part knows its language model by
fingerprint. It lies in the model's folder (`carry` takes it along from stage to stage) or in one of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.checkpoint import TensorEntry, read_header, read_tensor
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.files import digest_bytes, read_json, write_json
from dfrot.rotation.rotation import ROTATION_FILE as ROTATION
from dfrot.rotation.rotation import Rotation

CONFIG, WEIGHTS = "vision.json", "vision"
TOWER, PROJECTOR = "vision_tower.", "multi_modal_projector."
LAST = f"{PROJECTOR}linear_2"
MAX_SIZE = 4096  # pixels on a side
MAX_LAYERS, MAX_WIDTH = 256, 1 << 16  # of a tower; what a file says is looked at before anything is allocated


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
        config = cls(**found)
        tower: Any = config.tower if isinstance(config.tower, dict) else {}
        size, patch = tower.get("image_size"), tower.get("patch_size")
        whole = all(type(n) is int for n in (size, patch, config.image_token))
        sizes = [value for value in tower.values() if isinstance(value, int)]
        deep = tower.get("num_hidden_layers", 1)
        if not (whole and 0 < patch <= size <= MAX_SIZE and config.image_token >= 0):
            raise InputError(f"{file}: image_size, patch_size or image_token makes no sense; make it again")
        if not (isinstance(deep, int) and deep <= MAX_LAYERS and all(0 <= value <= MAX_WIDTH for value in sizes)):
            raise InputError(f"{file}: a tower of such sizes is not supported; make it again")
        if not isinstance(config.language_model, str):
            raise InputError(f"{file}: language_model is no fingerprint; make it again")
        return config

    @property
    def size(self) -> int:
        """Width and height of what the tower reads, in pixels."""
        return int(self.tower["image_size"])

    @property
    def per_image(self) -> int:
        """Image tokens of one image: one per patch."""
        return int((self.size // int(self.tower["patch_size"])) ** 2)


def has_vision_part(folder: Path) -> bool:
    """Whether a model's folder holds a vision part."""
    return (folder / CONFIG).is_file()


def vision_digest(folder: Path) -> str:
    """Identity of the vision part in a model's folder, whatever language model it names; empty without one."""
    if not has_vision_part(folder):
        return ""
    config, file = VisionConfig.read(folder / CONFIG), folder / f"{WEIGHTS}.safetensors"
    if not file.is_file():
        raise InputError(f"{folder}: no {file.name}, which {CONFIG} describes; restore it")
    return digest_bytes(
        json.dumps(config.tower, sort_keys=True).encode(), str(config.image_token).encode(), file.read_bytes()
    )


def compose(language_model: Any, config: VisionConfig) -> Any:
    """A LlavaForConditionalGeneration around a loaded causal language model, with a random tower and projector."""
    from transformers import LlavaForConditionalGeneration

    text = language_model.config
    if not 0 <= config.image_token < text.vocab_size:
        raise InputError(f"image token {config.image_token} is not in the vocabulary of {text.vocab_size}")
    attention = text._attn_implementation  # building the skeleton would choose anew
    both, parts = _modules(config, text)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(both)
    model.config.text_config = text  # the very object: it names the attention that serves the packed cache
    text._attn_implementation = attention
    model.model.language_model, model.lm_head = language_model.base_model, language_model.lm_head
    for name, part in parts.items():
        setattr(model.model, name, part)
    model.generation_config = language_model.generation_config
    return model.eval()


def _modules(config: VisionConfig, text: Any) -> tuple[Any, dict[str, nn.Module]]:
    """The configuration of the whole, and a random tower and projector."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    tower = CLIPVisionConfig(**config.tower)
    names = {"image_token_id": config.image_token, "vision_feature_layer": -1, "tie_word_embeddings": False}
    both = LlavaConfig(vision_config=tower, text_config=text, **names)
    return both, {"vision_tower": CLIPVisionModel(tower), "multi_modal_projector": LlavaMultiModalProjector(both)}


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


def save_vision_of(model: Any, folder: Path, config: VisionConfig, dtype: torch.dtype = torch.float32) -> None:
    """The tower and the projector of a composed model."""
    kept = {name: value.detach().to(dtype).contiguous() for name, value in _parts(model).items()}
    save_vision(folder, kept, config)


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
    save_vision(out, tensors, replace(config, language_model=fits))


def carry_vision(source: Path, fitted: str, out: Path, fits: str) -> None:
    """The vision part of folder `source`, whose fingerprint is `fitted`, for a model in the same basis.

    Raises MismatchError when it was made for another language model than the one it lies with."""
    config = VisionConfig.read(source / CONFIG)
    _fits(source, config, fitted)
    save_vision(out, _load(source), replace(config, language_model=fits))


def _fits(folder: Path, config: VisionConfig, fingerprint: str) -> None:
    if config.language_model and config.language_model != fingerprint:
        raise MismatchError(f"{folder}: was made for another language model; rotate the vision part for this one")


@torch.no_grad()
def image_embeddings(folder: Path, pixels: Tensor, width: int) -> Tensor:
    """What the vision part of a folder says of pixels float32 [n, 3, H, W]: embeddings float32 [n, patches, width]."""
    from transformers import LlamaConfig

    config, tensors = VisionConfig.read(folder / CONFIG), _load(folder)
    text = LlamaConfig(hidden_size=width)
    _require_fit(config, text, tensors, folder)
    both = nn.ModuleDict(_modules(config, text)[1])
    both.load_state_dict(tensors)
    seen = both["vision_tower"].eval()(pixels).last_hidden_state[:, 1:]  # without the class token
    return both["multi_modal_projector"](seen)  # type: ignore[no-any-return]


def vision_file(folder: Path) -> list[TensorEntry]:
    """The tensors of a vision part, not read yet."""
    file = folder / f"{WEIGHTS}.safetensors"
    if not file.is_file():
        raise InputError(f"{folder}: no {file.name}; is this the vision part of a model?")
    return list(read_header(file).values())


def _load(folder: Path) -> dict[str, Tensor]:
    return {entry.name: read_tensor(entry) for entry in vision_file(folder)}


def attach_vision(language_model: Any, vision: Path, fingerprint: str) -> Any:
    """The model that sees: a loaded language model, whose folder has this fingerprint, and its vision part. Raises
    MismatchError when they were not made for each other, InputError for a damaged file."""
    config, tensors = VisionConfig.read(vision / CONFIG), _load(vision)
    _fits(vision, config, fingerprint)
    _require_fit(config, language_model.config, tensors, vision)
    model = compose(language_model, config)
    model.model.load_state_dict(tensors, strict=False)
    return model.requires_grad_(False).eval()


def _require_fit(config: VisionConfig, text: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    """Raise InputError unless the tensors are those that the description asks for; nothing is allocated for it."""
    attention = text._attn_implementation
    try:
        with torch.device("meta"):
            parts = _modules(config, text)[1]
    except Exception as error:  # transformers raises many kinds here; all mean that the description is wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{folder / CONFIG}: refused by transformers ({reason}); make it again") from None
    finally:
        text._attn_implementation = attention
    for name, value in nn.ModuleDict(parts).state_dict().items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise InputError(f"{folder}: tensor {name} is missing or has another shape; make the vision part again")
    if extra := sorted(set(tensors) - set(nn.ModuleDict(parts).state_dict())):
        raise InputError(f"{folder}: tensor {extra[0]} does not belong to it; make the vision part again")
