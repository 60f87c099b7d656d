"""The vision part of a checkpoint on disk: a LLaVA vision tower and projector beside an ordinary language model.

The language model is rotated, calibrated and quantized like any other. Of what is added, only the projector's last
linear writes to the residual stream, so R1 goes into its weight and bias. The vision part names the language model
that it fits by fingerprint. It lies in the checkpoint's folder (`carry` copies it from stage to stage) or in its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.checkpoint import TensorEntry, read_header, read_tensor
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.files import digest_bytes, read_json, write_json
from dfrot.rotation.rotation import ROTATION_FILE as ROTATION
from dfrot.rotation.rotation import Rotation

CONFIG, WEIGHTS = "vision.json", "vision"
TOWER, PROJECTOR = "vision_tower.", "multi_modal_projector."
LAST = f"{PROJECTOR}linear_2"
# What a file claims is checked against these before anything is allocated.
MAX_SIZE = 4096  # pixels per side
MAX_LAYERS, MAX_WIDTH = 256, 1 << 16  # of a tower


@dataclass(frozen=True)
class VisionConfig:
    """The description of a vision part, `vision.json`."""

    tower: dict[str, Any]
    """Arguments of a CLIPVisionConfig."""
    image_token: int
    """The token id that stands for image embeddings in a prompt."""
    language_model: str = ""
    """Fingerprint of the checkpoint that the weights fit; empty before they are rotated."""

    @classmethod
    def read(cls, file: Path) -> VisionConfig:
        """From `vision.json`. Raises InputError for a file that is malformed or asks for absurd sizes."""
        content = read_json(file)
        if not isinstance(content, dict) or set(content) != {"tower", "image_token", "language_model"}:
            raise InputError(f"{file}: is not the description of a vision part; make it again", file=file)
        config = cls(**content)
        tower: Any = config.tower if isinstance(config.tower, dict) else {}
        size, patch = tower.get("image_size"), tower.get("patch_size")
        integers = all(type(n) is int for n in (size, patch, config.image_token))
        sizes = [value for value in tower.values() if isinstance(value, int)]
        layers = tower.get("num_hidden_layers", 1)
        if not (integers and 0 < patch <= size <= MAX_SIZE and config.image_token >= 0):
            raise InputError(f"{file}: image_size, patch_size or image_token is invalid; make it again", file=file)
        if not (isinstance(layers, int) and layers <= MAX_LAYERS and all(0 <= value <= MAX_WIDTH for value in sizes)):
            raise InputError(f"{file}: a tower of such sizes is not supported; make it again", file=file)
        if not isinstance(config.language_model, str):
            raise InputError(f"{file}: language_model is no fingerprint; make it again", file=file)
        return config

    @property
    def size(self) -> int:
        """Width and height of the tower's input, in pixels."""
        return int(self.tower["image_size"])

    @property
    def per_image(self) -> int:
        """Image tokens per image: one per patch."""
        return int((self.size // int(self.tower["patch_size"])) ** 2)


def has_vision_part(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a vision part."""
    return (folder / CONFIG).is_file()


def vision_digest(folder: Path) -> str:
    """sha256 of the vision part in a folder, whatever language model it names; empty without one.

    Raises InputError where vision.json lies there without its weights."""
    if not has_vision_part(folder):
        return ""
    config, file = VisionConfig.read(folder / CONFIG), folder / f"{WEIGHTS}.safetensors"
    if not file.is_file():
        raise InputError(f"{folder}: no {file.name}, which {CONFIG} describes; restore it", file=file)
    return digest_bytes(
        json.dumps(config.tower, sort_keys=True).encode(), str(config.image_token).encode(), file.read_bytes()
    )


def save_vision(folder: Path, tensors: dict[str, Tensor], config: VisionConfig) -> None:
    """Write `vision.json` and `vision.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = [TensorPlan(name, value.dtype, tuple(value.shape)) for name, value in sorted(tensors.items())]
    writer = SafetensorsWriter(folder, plan, WEIGHTS)
    for name, value in tensors.items():
        writer.write(name, value)
    writer.sync()
    write_json(folder / CONFIG, vars(config))


def rotate_vision(vision: Path, rotated: Path, fits: str, out: Path) -> None:
    """Write the vision part in the basis of a rotated checkpoint: x' = x R1, so the projector's last weight becomes
    R1^T W and its bias b R1.

    Args:
        vision: the folder of the unrotated vision part.
        rotated: a result of dfq rotate.
        fits: fingerprint of the checkpoint that the result is for: `rotated`, or a quantized one made of it.
        out: the folder to write to.

    Raises UnsupportedError for a vision part that is rotated already, MismatchError for another width."""
    config, tensors = VisionConfig.read(vision / CONFIG), load_vision_tensors(vision)
    if config.language_model:
        raise UnsupportedError(
            f"{vision}: is rotated already; give the vision part of the source checkpoint", file=vision
        )
    r1 = Rotation.load(rotated / ROTATION, "R1").matrix
    weight = tensors[f"{LAST}.weight"]
    if weight.shape[0] != r1.shape[0]:
        raise MismatchError(
            f"{vision}: writes width {weight.shape[0]}, the rotation of {rotated} has {r1.shape[0]}", file=vision
        )
    tensors[f"{LAST}.weight"] = (r1.T @ weight.double()).to(weight.dtype)
    tensors[f"{LAST}.bias"] = (tensors[f"{LAST}.bias"].double() @ r1).to(weight.dtype)
    save_vision(out, tensors, replace(config, language_model=fits))


def carry_vision(source: Path, fitted: str, out: Path, fits: str) -> None:
    """Write the vision part of folder `source` for a checkpoint in the same basis.

    fitted: fingerprint of the language model in `source`. fits: fingerprint of the one that the result is for. Raises
    MismatchError when the vision part names another language model than the one it lies with."""
    config = VisionConfig.read(source / CONFIG)
    check_language_model(source, config, fitted)
    save_vision(out, load_vision_tensors(source), replace(config, language_model=fits))


def check_language_model(folder: Path, config: VisionConfig, fingerprint: str) -> None:
    """Raise MismatchError unless the vision part of `folder` fits the language model with this fingerprint."""
    if config.language_model and config.language_model != fingerprint:
        raise MismatchError(
            f"{folder}: was made for another language model; rotate the vision part for this one", file=folder
        )


def vision_file(folder: Path) -> list[TensorEntry]:
    """The entries of the tensors of a vision part, which are not read. Raises InputError without its file."""
    file = folder / f"{WEIGHTS}.safetensors"
    if not file.is_file():
        raise InputError(f"{folder}: no {file.name}; is this the vision part of a model?", file=file)
    return list(read_header(file).values())


def load_vision_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a vision part by name."""
    return {entry.name: read_tensor(entry) for entry in vision_file(folder)}
