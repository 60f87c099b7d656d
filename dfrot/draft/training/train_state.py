"""The state of a draft's training on disk: what an interrupted run continues from."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import TensorEntry, read_tensor
from dfrot.draft.training.distributed import LocalGroup
from dfrot.training_state import open_training, save_training

STATE = "state.safetensors"

Parts = dict[str, dict[str, Tensor]]
"""Tensors by part (model, best, optimizer) and name."""


def save_state(folder: Path, parts: Parts, record: dict[str, Any], group: LocalGroup) -> None:
    """Write the state, by the first process; the others contribute the parts of tensors that they hold."""
    if group.rank == 0:
        save_training(folder / STATE, parts, record, group.gather)
    else:
        for value in (value for part in parts.values() for value in part.values()):
            group.gather(value)  # in the order in which the first process writes


def load_state(folder: Path, own: dict[str, Tensor], group: LocalGroup) -> tuple[Parts, dict[str, Any]] | None:
    """The state of an interrupted run, perhaps with another number of processes; None without one.

    own: the parameters of this process's draft by name. Tensors come back split as those are."""
    file = folder / STATE
    entries: dict[str, dict[str, TensorEntry]] = {}
    header = b""
    if group.rank == 0 and file.is_file():
        entries, record = open_training(file)
        forms = {part: {name: _form(entry) for name, entry in named.items()} for part, named in entries.items()}
        header = json.dumps([record, forms]).encode()
    header = group.broadcast(header)
    if not header:
        return None
    record, forms = json.loads(header)
    parts: Parts = defaultdict(dict)
    for part, named in forms.items():
        for name, (shape, dtype) in named.items():
            like = own[name.split("/", 1)[1] if part == "optimizer" else name]
            tensor = read_tensor(entries[part][name]) if entries else None
            parts[part][name] = group.scatter(tensor, shape, getattr(torch, dtype), like)
    return parts, record


def _form(entry: TensorEntry) -> tuple[list[int], str]:
    """Shape, and the name of the dtype."""
    return list(entry.shape), str(entry.dtype).removeprefix("torch.")
