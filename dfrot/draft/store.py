"""A draft on disk: config.json and one safetensors file, with the fingerprint of the target that it belongs to."""

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
from dfrot.generation.acceptance_rates import AcceptanceRates
from dfrot.stage_folder import RECORD
from dfrot.tensor_file import load_tensors, save_tensors
from dfrot.vision.fingerprint import fingerprint

CONFIG, WEIGHTS = "draft.json", "draft"


def save_draft(folder: Path, draft: Draft, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config and weights into `folder` (a stage's working folder)."""
    save_tensors(
        folder / f"{WEIGHTS}.safetensors",
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in draft.state_dict().items()},
    )
    write_json(folder / CONFIG, draft.config.to_dict())


def load_draft(folder: Path, dtype: torch.dtype = torch.float32) -> Draft:
    """The draft of a folder, in evaluation mode, with the rates of its record where there is one. Raises InputError
    naming the file and the tensor at fault."""
    where = folder / CONFIG
    if not where.is_file():
        raise InputError(f"{folder}: no {CONFIG}; is this the --out of dfq draft train?")
    draft = build(DraftConfig.from_dict(read_json(where), str(where)))
    if draft.config.quantized:
        empty_linears(draft, draft.config.quantized)
    load_state(draft, load_tensors(folder / f"{WEIGHTS}.safetensors"), str(folder / f"{WEIGHTS}.safetensors"))
    prepare_linears(draft)
    if (folder / RECORD).is_file():
        draft.rates = AcceptanceRates.of_history(read_json(folder / RECORD))
    return draft.to(dtype).requires_grad_(False).eval()


def load_state(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Strict: every parameter must be there with its shape, and nothing else."""
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise InputError(f"{where}: tensor {name} is missing; make the draft again")
        if tensors[name].shape != tensor.shape:
            raise InputError(f"{where}: tensor {name}: shape {list(tensors[name].shape)}, needs {list(tensor.shape)}")
    if extra := sorted(set(tensors) - set(expected)):
        raise InputError(f"{where}: tensor {extra[0]} is not part of this draft; is {CONFIG} the right one?")
    module.load_state_dict(tensors)


def check_target(draft: DraftConfig, target: Path, vocab_size: int, hidden_size: int, force: bool = False) -> None:
    """Refuse a draft of another target; `force` allows other weights, never other sizes."""
    if draft.vocab_size != vocab_size or draft.target_hidden_size != hidden_size:
        raise MismatchError(
            f"{target}: vocabulary {vocab_size} and width {hidden_size}, the draft was made for {draft.vocab_size} and "
            f"{draft.target_hidden_size}; give the target that it was trained on"
        )
    if not force and draft.target_fingerprint != fingerprint(target):
        raise MismatchError(
            f"{target}: is not the target that this draft was trained on ({draft.target_fingerprint[:12]}); "
            "train a draft for it, or use --force to measure what a foreign draft is worth"
        )
