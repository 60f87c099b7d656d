"""Which checkpoint a draft belongs to, its vision part included."""

from __future__ import annotations

from pathlib import Path

from dfrot.files import digest_bytes
from dfrot.fingerprint import language_fingerprint
from dfrot.vision.llava_layout import vision_digest


def fingerprint(target: Path) -> str:
    """Identity of a target: its config (quantization and rotations included), weights, tokenizer and chat template,
    and the vision part or the processor of one that sees."""
    language = language_fingerprint(target)
    seen = vision_digest(target)
    return digest_bytes(language.encode(), seen.encode()) if seen else language
