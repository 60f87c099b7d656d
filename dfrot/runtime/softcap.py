"""Caps on attention scores and logits (Gemma 2, arXiv 2408.00118): x becomes cap * tanh(x / cap)."""

from __future__ import annotations

from typing import Any, Literal

from dfrot.arch import BoundArch


def softcap_of(config: Any, arch: BoundArch, role: Literal["logits", "attention"]) -> float | None:
    """The cap that a transformers configuration puts on logits or attention scores, or None."""
    key = getattr(arch.spec.scalars, f"{role}_cap")
    value = getattr(config, key, None) if key else None
    return None if value is None else float(value)
