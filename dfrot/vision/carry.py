"""The vision part of a checkpoint, copied along by the stages that write checkpoints."""

from __future__ import annotations

from pathlib import Path

from dfrot.errors import UnsupportedError
from dfrot.inputs.fingerprint import language_fingerprint
from dfrot.vision.llava_layout import CONFIG, carry_vision, has_vision_part, rotate_vision


def rotate_vision_part(source: Path, result: Path, turned: bool) -> None:
    """Write the vision part of `source` into its rotated checkpoint, which must be complete. turned: R1 was used."""
    if turned:
        rotate_vision(source, result, language_fingerprint(result), result)
    else:
        carry_vision_part(source, result)


def carry_vision_part(source: Path, result: Path) -> None:
    """Write the vision part of `source`, if it has one, into a checkpoint in the same basis, which must be complete."""
    if has_vision_part(source):
        carry_vision(source, language_fingerprint(source), result, language_fingerprint(result))


def refuse_vision_part(model: Path, what: str) -> None:
    """Raise UnsupportedError for a VLM in our layout, whose vision part `what` would lose."""
    if has_vision_part(model):
        raise UnsupportedError(
            f"{model}: holds a vision part, which {what} would lose; a copy without {CONFIG} is a language model"
        )
