"""A target from its folder, with its vision part where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfrot.fingerprint import language_fingerprint
from dfrot.generation.target import Target
from dfrot.generation.transformers_hook import eos_token_ids
from dfrot.runtime.load import load_model
from dfrot.vision.llava_layout import attach_vision, has_vision_part


def load_target(model: Path, aux_layers: Sequence[int] = (), drafted: bool = True) -> Target:
    """The target of a checkpoint folder. drafted: False where it decodes plainly. Raises DfqError in one line."""
    loaded = load_model(model)
    return Target(
        attach_vision(loaded, model, language_fingerprint(model)) if has_vision_part(model) else loaded,
        aux_layers,
        drafted,
    )


def end_token_ids(target: Target) -> frozenset[int]:
    """The tokens that end its texts."""
    return eos_token_ids(target.model.generation_config)
