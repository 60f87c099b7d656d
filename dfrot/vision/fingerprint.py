"""Which checkpoint a draft belongs to, its vision part included."""

from __future__ import annotations

from pathlib import Path

from dfrot.files import digest_bytes
from dfrot.inputs.fingerprint import language_fingerprint
from dfrot.vision.llava_layout import vision_digest


def checkpoint_fingerprint(folder: Path) -> str:
    """sha256 that identifies a target: its config (quantization and rotations included), weights, tokenizer and chat
    template, and of a VLM its vision part or processor."""
    language = language_fingerprint(folder)
    vision = vision_digest(folder)
    return digest_bytes(language.encode(), vision.encode()) if vision else language
