"""Images for the equivalence gate of a VLM: drawn, then embedded by both models' vision parts."""

from __future__ import annotations

import torch

from dfrot.data import shapes
from dfrot.data.images import normalized_pixels
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.rotate.gate import GateImages
from dfrot.vision.llava_layout import CONFIG, VisionConfig, vision_file
from dfrot.vision.llava_model import image_embeddings

GATE_IMAGES = 2


def gate_images(original: BlockRunner, rotated: BlockRunner) -> GateImages:
    """The embeddings that both models' vision parts make of the same drawn images, n = images x patches rows each.

    The gate inserts them behind the first token."""
    folders = (original.checkpoint.path, rotated.checkpoint.path)
    size = VisionConfig.read(folders[0] / CONFIG).size
    samples = [shapes.sample(shapes.HELD_OUT + number) for number in range(GATE_IMAGES)]
    images = torch.stack([normalized_pixels(sample.picture, size) for sample in samples])
    before, after = (image_embeddings(folder, images, original.arch.hidden).flatten(0, 1)[None] for folder in folders)
    unit = max(torch.finfo(entry.dtype).eps for entry in vision_file(folders[1])) / 2
    return GateImages(before, after, unit)
