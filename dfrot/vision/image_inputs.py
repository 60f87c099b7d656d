"""The images of a prompt, as the model takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dfrot.vision.settings import KEEP


@dataclass(frozen=True)
class ImageInputs:
    """The tensors of a prompt's images, and how many image tokens the draft gets."""

    tensors: dict[str, Any]
    """The processor's output besides the token ids (pixel_values, image_sizes, ...)."""
    keep: float = KEEP
    """Share of the image tokens that the draft gets."""
