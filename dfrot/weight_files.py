"""Which files of a checkpoint folder hold its weights, decided as transformers decides it.

transformers reads `model.safetensors` where there is one, and otherwise every shard that the index names, each with all
of its tensors, whatever the index says of them. A folder for which that leaves two answers is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dfrot.errors import InputError, UnsupportedError
from dfrot.files import read_json
from dfrot.safetensors_file import TensorEntry, read_header, require, same_bytes

SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # transformers prefers these to all others

Tensors = dict[str, TensorEntry]


def refuse_adapter(path: Path) -> None:
    """Raise UnsupportedError for a folder that holds an adapter (LoRA), beside weights or alone."""
    file = path / ADAPTER
    if not file.exists():
        return
    try:
        value = read_json(file)
    except InputError:
        value = None
    base = value.get("base_model_name_or_path") if isinstance(value, dict) else None
    of = f" of {base[:100]!r}" if isinstance(base, str) and base else ""
    raise UnsupportedError(
        f"{path}: holds an adapter{of} ({ADAPTER}), which dfq does not run; merge it into its base model (dfq import "
        f"BASE --merge-adapter {path}), or remove {ADAPTER} if the weights beside it are the model",
        file=path,
    )


def stored_tensors(path: Path) -> tuple[Tensors, list[str]]:
    """The tensors of a folder by name, and what is to be said of how they were found.

    Raises InputError for damaged files and for two sets of weights, UnsupportedError for formats other than
    safetensors."""
    single, index = path / SINGLE, path / INDEX
    if shards := sorted(file.name for file in path.iterdir() if _DISTRIBUTED.fullmatch(file.name)):
        raise UnsupportedError(
            f"{path / shards[0]}: belongs to a distributed checkpoint, which transformers would read in place of the "
            "other files; save the model with save_pretrained",
            file=path / shards[0],
        )
    if index.is_file():
        weight_map = _weight_map(index)
        if not single.is_file():
            entries, notes = _indexed(path, index, weight_map)
            return entries, notes + _left_over(path, set(weight_map.values()))
        if set(weight_map.values()) != {SINGLE}:
            raise InputError(
                f"{path}: two sets of weights, {SINGLE} and the shards of {INDEX}, of which transformers reads the "
                "first; remove one of them",
                file=path,
            )
    if not single.is_file():
        if any(path.glob("*.bin")):
            raise UnsupportedError(
                f"{path}: only pickled weights (*.bin) are here, which dfq never reads; "
                "convert them to safetensors with transformers' save_pretrained"
            )
        raise InputError(f"{path}: no {SINGLE} and no {INDEX}; copy the weights")
    return read_header(single), _left_over(path, {SINGLE})


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, checked: no name leads out of the folder."""
    value = read_json(index)
    weight_map: Any = value.get("weight_map") if isinstance(value, dict) else None
    require(
        isinstance(weight_map, dict) and bool(weight_map),
        f"{index}: weight_map is missing or empty; copy it again",
    )
    for name, shard in weight_map.items():
        require(
            isinstance(shard, str) and shard not in ("", ".", "..") and "/" not in shard and "\\" not in shard,
            f"{index}: tensor {name} points to {shard!r}, which is not a file of this folder; restore the index",
        )
    return dict(weight_map)


def _indexed(path: Path, index: Path, weight_map: dict[str, str]) -> tuple[Tensors, list[str]]:
    """The tensors of all shards. Raises InputError for a tensor that two shards hold with different values."""
    headers = {shard: read_header(path / shard) for shard in sorted(set(weight_map.values()))}
    entries: Tensors = {}
    for name, shard in weight_map.items():
        require(
            name in headers[shard],
            f"{path / shard}: tensor {name} is missing (the index lists it); copy it again",
        )
        entries[name] = headers[shard][name]
    repeated, unlisted = [], []
    for shard, header in headers.items():
        for name, entry in header.items():
            if name not in entries:
                entries[name] = entry
                unlisted.append(name)
            elif entries[name] is not entry:
                if not same_bytes(entries[name], entry):
                    raise InputError(
                        f"{path / shard}: tensor {name} differs from the one in {entries[name].file.name}, which "
                        f"{index.name} names; remove one of the two",
                        file=path / shard,
                        tensor=name,
                    )
                repeated.append(name)
    notes = []
    if repeated:
        notes.append(f"{len(repeated)} tensors lie in two shards with equal bytes ({min(repeated)}): read once")
    if unlisted:
        listed = f"{len(unlisted)} tensors of the shards are not in {index.name} ({min(unlisted)})"
        notes.append(f"{listed}: read, as transformers does")
    return entries, notes


def _left_over(path: Path, used: set[str]) -> list[str]:
    """A note on shards that nobody reads."""
    others = sorted(file.name for file in path.iterdir() if _SHARD.fullmatch(file.name) and file.name not in used)
    return [f"{', '.join(others[:4])}: not read, for no index names it"] if others else []
