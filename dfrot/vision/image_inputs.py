"""image_inputs"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dfrot.vision.settings import KEEP


@dataclass(frozen=True)
class ImageInputs:
    """given: what the processor made besides the ids, whose image tokens stand in the prompt. keep: share of image
    tokens that the draft sees."""

    given: dict[str, Any]
    keep: float = KEEP
