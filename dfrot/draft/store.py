"""A draft on disk: config.json and one safetensors file, with the fingerprint of the target that it belongs to."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.checkpoint import Checkpoint, TensorEntry, read_header, read_tensor
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.draft.models.base import Draft
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.quantize import empty_linears, prepare_linears
from dfrot.errors import InputError, MismatchError
from dfrot.files import digest_bytes, fsync_folder, read_json, write_json
from dfrot.generation.acceptance_rates import AcceptanceRates
from dfrot.stage_folder import RECORD
from dfrot.vision.llava_layout import vision_digest
from dfrot.vision.processor import FILES as PROCESSOR

CONFIG, WEIGHTS = "draft.json", "draft"
# what decides how text becomes ids and how conversations are written down
_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def fingerprint(target: Path) -> str:
    """Identity of a target: its config (quantization and rotations included), weights, tokenizer and chat template,
    and the vision part or the processor of one that sees."""
    language = language_fingerprint(target)
    seen = vision_digest(target)
    return digest_bytes(language.encode(), seen.encode()) if seen else language


def language_fingerprint(target: Path) -> str:
    """`fingerprint` of the language model alone, by which a vision part knows it."""
    files = [target / name for name in _FILES]
    texts = [file.read_bytes() if file.is_file() else b"" for file in files]
    texts += [(target / name).read_bytes() for name in PROCESSOR if (target / name).is_file()]
    return digest_bytes(Checkpoint.open(target).digest().encode(), *texts)


def save_tensors(
    file: Path, tensors: dict[str, Tensor], whole: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> None:
    """Write one safetensors file aside and rename it: it is whole or not there. whole: puts together a tensor that
    several processes hold, when its turn comes, in the order of `tensors`."""
    plan = [TensorPlan(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(tensors.items())]
    stem = f".{file.stem}.new"
    writer = SafetensorsWriter(file.parent, plan, stem, shard_bytes=1 << 62)
    for name, tensor in tensors.items():
        writer.write(name, whole(tensor))
    writer.sync()
    (file.parent / f"{stem}.safetensors").replace(file)
    fsync_folder(file.parent)


def save_training(
    file: Path,
    parts: dict[str, dict[str, Tensor]],
    told: dict[str, Any],
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Where a training stands: tensors by part and name, and JSON, in one file that is whole or not there."""
    tensors = {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}
    history = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    save_tensors(file, {**tensors, "history": history}, whole)


def load_training(file: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_training` was given. Raises InputError for a damaged file."""
    parts, told = open_training(file)
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)  # a part without tensors is not in the file
    for part, named in parts.items():
        found[part] = {key: read_tensor(entry) for key, entry in named.items()}
    return found, told


def open_training(file: Path) -> tuple[dict[str, dict[str, TensorEntry]], dict[str, Any]]:
    """As `load_training`, the tensors where they lie: for those who hold a part of each. Raises InputError."""
    found = read_header(file)
    told: dict[str, Any] = json.loads(bytes(read_tensor(found.pop("history")).tolist()))
    parts: dict[str, dict[str, TensorEntry]] = defaultdict(dict)
    for name, entry in found.items():
        part, key = name.split("/", 1)
        parts[part][key] = entry
    return dict(parts), told


def load_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of one file, checked. Raises InputError when it is missing or damaged."""
    if not file.is_file():
        raise InputError(f"{file}: file not found; the draft is incomplete, make it again")
    return {name: read_tensor(entry) for name, entry in read_header(file).items()}


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
