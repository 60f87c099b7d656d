"""A checkpoint of which only config.json is here: its tensors as the description of its architecture has them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import BoundArch, describe
from dfrot.checkpoint import Checkpoint
from dfrot.dtypes import DTYPES
from dfrot.errors import InputError
from dfrot.files import read_json
from dfrot.safetensors_file import TensorEntry


def unread_checkpoint(config: dict[str, Any], where: str) -> tuple[Checkpoint, BoundArch, list[str]]:
    """The checkpoint, its architecture, and what was assumed. No weight can be read from it.

    where: how messages name the configuration. Raises UnsupportedError or InputError for what is not described."""
    arch = describe(config, where)
    notes = []
    keys = ("dtype", "torch_dtype")
    named = next((place[key] for place in (config, arch.config) for key in keys if place.get(key)), None)
    dtype = DTYPES.get(str(named).removeprefix("torch."))
    if dtype is None:
        dtype = torch.bfloat16
        notes.append("config.json names no dtype of weights: taken as bfloat16")
    if arch.wrapper is not None:
        notes.append("of the VLM the language model alone; its vision part is copied as it is")
    entries: dict[str, TensorEntry] = {}
    at = 0
    for name, shape in {**arch.tensors(), **arch.biases()}.items():
        end = at + math.prod(shape) * dtype.itemsize
        entries[name] = TensorEntry(name, Path(where), dtype, shape, at, end)
        at = end
    return Checkpoint(Path(where).parent, config, entries), arch, notes


def read_config(file: Path) -> dict[str, Any]:
    """A config.json. Raises InputError for anything else."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: is not a JSON object; give a model's config.json", file=file)
    return value
