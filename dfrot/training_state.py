"""The state of a training on disk: named tensors in parts (weights, moments, ...) and JSON, in one safetensors file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import TensorEntry, read_header, read_tensor
from dfrot.tensor_file import save_tensors

JSON_TENSOR = "history"  # the tensor uint8 [bytes] that holds the JSON


def save_training(
    file: Path,
    parts: dict[str, dict[str, Tensor]],
    record: dict[str, Any],
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Write tensors by part and name, and a JSON object. The file is complete or not there. gather: as in
    `save_tensors`."""
    tensors = {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}
    encoded = torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)
    save_tensors(file, {**tensors, JSON_TENSOR: encoded}, gather)


def load_training(file: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The arguments `parts` and `record` of `save_training`. Raises InputError for a damaged file."""
    entries, record = open_training(file)
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)  # parts without tensors are not in the file
    for part, named in entries.items():
        parts[part] = {name: read_tensor(entry) for name, entry in named.items()}
    return parts, record


def open_training(file: Path) -> tuple[dict[str, dict[str, TensorEntry]], dict[str, Any]]:
    """Like `load_training`, but with the tensors' entries in the file in place of the tensors, for processes that hold
    a part of each. Raises InputError for a damaged file."""
    entries = read_header(file)
    record: dict[str, Any] = json.loads(bytes(read_tensor(entries.pop(JSON_TENSOR)).tolist()))
    parts: dict[str, dict[str, TensorEntry]] = defaultdict(dict)
    for full_name, entry in entries.items():
        part, name = full_name.split("/", 1)
        parts[part][name] = entry
    return dict(parts), record
