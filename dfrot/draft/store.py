"""A draft on disk: draft.json, one safetensors file, and the fingerprint of the target that it belongs to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dfrot.draft.models.base import Draft
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.quantize import empty_linears, prepare_linears
from dfrot.errors import InputError, MismatchError
from dfrot.files import read_json, write_json
from dfrot.generation.speculation.acceptance_rates import AcceptanceRates
from dfrot.stage_folder import RECORD
from dfrot.tensor_file import load_tensors, save_tensors
from dfrot.vision.fingerprint import checkpoint_fingerprint

CONFIG, WEIGHTS = "draft.json", "draft.safetensors"
SHOWN_DIGITS = 12  # of a fingerprint in messages


def save_draft(folder: Path, draft: Draft, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config and weights into `folder`, a stage's working folder. dtype: of tensors in floating point."""
    state = draft.state_dict()
    tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    save_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, draft.config.to_dict())


def load_draft(folder: Path, dtype: torch.dtype = torch.float32) -> Draft:
    """The draft of a folder in evaluation mode, with the acceptance rates of its record where there is one.

    Raises InputError naming the file and the tensor at fault."""
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    if not config_file.is_file():
        raise InputError(f"{folder}: no {CONFIG}; give the output folder of dfq draft train", file=config_file)
    config = DraftConfig.from_dict(read_json(config_file), str(config_file))
    tensors = load_tensors(weights_file)
    with torch.device("meta"):  # sizes that the file does not have are refused before they take memory
        check_state(_without_content(config), tensors, weights_file)
    draft = _without_content(config)
    draft.load_state_dict(tensors)
    _check_tokens(draft, weights_file)
    prepare_linears(draft)
    if (folder / RECORD).is_file():
        draft.rates = AcceptanceRates.of_history(read_json(folder / RECORD))
    return draft.to(dtype).requires_grad_(False).eval()


def _without_content(config: DraftConfig) -> Draft:
    """A draft with the tensors of a stored one."""
    draft = build(config)
    if config.quantized:
        empty_linears(draft, config.quantized, config.quantized_head)
    return draft


def _check_tokens(draft: Draft, file: Path) -> None:
    """Raise InputError unless `d2t` names rising token ids of the target."""
    ids = draft.token_ids
    if ids is None:
        return
    outside = int(ids.min()) < 0 or int(ids.max()) >= draft.config.vocab_size
    if outside or not bool((ids.diff() > 0).all()):
        raise InputError(
            f"{file}: tensor d2t names no rising ids below {draft.config.vocab_size}; make the draft again",
            file=file,
            tensor="d2t",
        )


def check_state(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Raise InputError unless the tensors of `file` are exactly the module's, by name and shape."""
    expected = module.state_dict()
    for name, value in expected.items():
        if name not in tensors:
            raise InputError(f"{file}: tensor {name} is missing; make the draft again", file=file, tensor=name)
        if tensors[name].shape != value.shape:
            shapes = f"shape {list(tensors[name].shape)}, needs {list(value.shape)}"
            raise InputError(f"{file}: tensor {name}: {shapes}", file=file, tensor=name)
    if extra := sorted(set(tensors) - set(expected)):
        raise InputError(
            f"{file}: tensor {extra[0]} is not part of this draft; is {CONFIG} the right one?",
            file=file,
            tensor=extra[0],
        )


def load_state(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Load the tensors of `file` into a module. Raises as `check_state`."""
    check_state(module, tensors, file)
    module.load_state_dict(tensors)


def check_target(draft: DraftConfig, target: Path, vocab_size: int, hidden_size: int, force: bool = False) -> None:
    """Raise MismatchError for a draft of another target. vocab_size, hidden_size: of the target. force: allow other
    weights, never other sizes."""
    if draft.vocab_size != vocab_size or draft.target_hidden_size != hidden_size:
        raise MismatchError(
            f"{target}: vocabulary {vocab_size} and width {hidden_size}, the draft was made for {draft.vocab_size} and "
            f"{draft.target_hidden_size}; give the target that it was trained on",
            file=target,
        )
    if not force and draft.target_fingerprint != checkpoint_fingerprint(target):
        raise MismatchError(
            f"{target}: is not the target that this draft was trained on ({draft.target_fingerprint[:SHOWN_DIGITS]}); "
            "train a draft for it, or use `force` to measure what a foreign draft is worth",
            field="force",
            file=target,
        )
