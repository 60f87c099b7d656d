"""The vision part of a model that sees, taken along by the stages that write checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from dfrot.data import shapes
from dfrot.data.images import normalized_pixels
from dfrot.draft.store import language_fingerprint
from dfrot.errors import UnsupportedError
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.rotate.gate import GateImages
from dfrot.vision.llava_layout import (
    CONFIG,
    VisionConfig,
    carry_vision,
    has_vision_part,
    image_embeddings,
    rotate_vision,
    vision_file,
)

GATE_IMAGES = 2


def rotate_vision_part(source: Path, result: Path, turned: bool) -> None:
    """Write the vision part of `source` into its rotated checkpoint, which is complete; turned: R1 was used."""
    if turned:
        rotate_vision(source, result, language_fingerprint(result), result)
    else:
        carry_vision_part(source, result)


def carry_vision_part(source: Path, result: Path) -> None:
    """Write the vision part of `source`, if it has one, beside a checkpoint in the same basis, which is complete."""
    if has_vision_part(source):
        carry_vision(source, language_fingerprint(source), result, language_fingerprint(result))


def gate_images(original: BlockRunner, rotated: BlockRunner) -> GateImages:
    """What both models see of the same drawn images: rows that the gate feeds them behind the first token."""
    folders = (original.checkpoint.path, rotated.checkpoint.path)
    size = VisionConfig.read(folders[0] / CONFIG).size
    drawn = torch.stack(
        [normalized_pixels(shapes.sample(shapes.HELD_OUT + n).picture, size) for n in range(GATE_IMAGES)]
    )
    before, after = (image_embeddings(folder, drawn, original.arch.hidden).flatten(0, 1)[None] for folder in folders)
    return GateImages(before, after, max(torch.finfo(entry.dtype).eps for entry in vision_file(folders[1])) / 2)


def refuse_vision_part(model: Path, what: str) -> None:
    """Raise UnsupportedError for a model that sees, whose vision part `what` would lose."""
    if has_vision_part(model):
        raise UnsupportedError(
            f"{model}: holds a vision part, which {what} would lose; a copy without {CONFIG} is a language model"
        )
