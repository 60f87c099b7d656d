"""training_state"""

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
