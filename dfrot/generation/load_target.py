"""Loading a target from its checkpoint folder, together with its vision part where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfrot.generation.target import Target
from dfrot.generation.transformers_hook import eos_token_ids
from dfrot.inputs.fingerprint import language_fingerprint
from dfrot.runtime.load import load_for_decoding, load_model
from dfrot.vision.llava_layout import has_vision_part
from dfrot.vision.llava_model import attach_vision


def load_target(model: Path, aux_layers: Sequence[int] = (), drafted: bool = True) -> Target:
    """The target of a checkpoint folder.

    aux_layers: decoder layers whose outputs the draft reads. drafted: False where it only decodes plainly. Raises
    DfqError for a checkpoint that cannot be loaded or drafted for."""
    if has_vision_part(model):
        loaded = attach_vision(load_model(model), model, language_fingerprint(model))
    else:
        loaded = load_model(model) if drafted or aux_layers else load_for_decoding(model)
    return Target(loaded, aux_layers, drafted)


def end_token_ids(target: Target) -> frozenset[int]:
    """The token ids that end the target's texts."""
    return eos_token_ids(target.model.generation_config)
