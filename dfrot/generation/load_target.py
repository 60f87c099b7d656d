"""A target from its folder, with its vision part where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfrot.draft.store import language_fingerprint
from dfrot.generation.target import Target
from dfrot.generation.transformers_hook import end_tokens
from dfrot.runtime.load import load_model
from dfrot.vision.llava_layout import join, sees


def open_target(model: Path, aux_layers: Sequence[int] = (), drafted: bool = True) -> Target:
    """The target of a checkpoint folder. drafted: False where it decodes plainly. Raises DfqError in one line."""
    loaded = load_model(model)
    return Target(join(loaded, model, language_fingerprint(model)) if sees(model) else loaded, aux_layers, drafted)


def ends_of(target: Target) -> frozenset[int]:
    """The tokens that end its texts."""
    return end_tokens(target.model.generation_config)
