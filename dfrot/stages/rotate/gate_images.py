"""gate_images"""

from __future__ import annotations

import torch

from dfrot.data import shapes
from dfrot.data.images import normalized_pixels
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.rotate.gate import GateImages
from dfrot.vision.llava_layout import (
    CONFIG,
    VisionConfig,
    image_embeddings,
    vision_file,
)

GATE_IMAGES = 2


def gate_images(original: BlockRunner, rotated: BlockRunner) -> GateImages:
    """What both models see of the same drawn images: rows that the gate feeds them behind the first token."""
    folders = (original.checkpoint.path, rotated.checkpoint.path)
    size = VisionConfig.read(folders[0] / CONFIG).size
    drawn = torch.stack(
        [normalized_pixels(shapes.sample(shapes.HELD_OUT + n).picture, size) for n in range(GATE_IMAGES)]
    )
    before, after = (image_embeddings(folder, drawn, original.arch.hidden).flatten(0, 1)[None] for folder in folders)
    return GateImages(before, after, max(torch.finfo(entry.dtype).eps for entry in vision_file(folders[1])) / 2)
