"""Images for the equivalence gate: embeddings of the same pictures before and after rotation."""

from __future__ import annotations

import torch

from dfrot.data import shapes
from dfrot.data.images import pixels
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.rotate.gate import GateImages
from dfrot.vision.llava_layout import CONFIG, VisionConfig, vision_roundoff
from dfrot.vision.llava_model import image_embeddings

GATE_IMAGES = 2


def gate_images(original: BlockRunner, rotated: BlockRunner) -> GateImages:
    """What the projectors of both models compute of the same drawn pictures. The gate feeds it to the models behind
    the first token."""
    folders = (original.checkpoint.path, rotated.checkpoint.path)
    size = VisionConfig.read(folders[0] / CONFIG).size
    drawn = torch.stack([pixels(shapes.sample(shapes.HELD_OUT + n).picture, size) for n in range(GATE_IMAGES)])
    before, after = (image_embeddings(folder, drawn, original.arch.hidden).flatten(0, 1)[None] for folder in folders)
    return GateImages(before, after, vision_roundoff(folders[1]))
