"""What formats of quantized Hugging Face folders have in common: the tensors that together make one weight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint, TensorEntry
from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs.dense_view import DenseTensor

RUNTIME_PARTS = frozenset(
    f"{kind}_{part}"
    for kind in ("input", "output", "activation", "k", "v", "q")
    for part in ("scale", "zero_point", "global_scale", "scale_inv")
) | {"activation_scale", "k_proj.k_scale", "kv_scale"}
"""Last parts of names of tensors that describe activations or the KV cache, not weights."""


@dataclass
class FormatDescription:
    """What a format makes of a folder."""

    name: str
    """The format, in words."""
    tensors: list[DenseTensor] = field(default_factory=list)
    """The dequantized weights."""
    consumed: set[str] = field(default_factory=set)
    """Names of the stored tensors that they are made from, or that are left out."""
    dropped: list[str] = field(default_factory=list)
    """What is left out, in words."""


FolderFormat = Callable[[Checkpoint, dict[str, Any], torch.dtype], FormatDescription]
"""(checkpoint as stored, its quantization_config, dtype of dequantized weights) -> description.

Raises InputError for a folder that contradicts the format, UnsupportedError for a variant that is not read."""


class StoredParts:
    """The stored tensors of one quantized weight, by the last part of their names."""

    def __init__(self, checkpoint: Checkpoint, module: str) -> None:
        self.checkpoint, self.module = checkpoint, module

    def __contains__(self, part: str) -> bool:
        return f"{self.module}.{part}" in self.checkpoint.entries

    def entry(self, part: str) -> TensorEntry:
        """Where a part is stored. Raises InputError when it is missing."""
        return self.checkpoint.entry(f"{self.module}.{part}")

    def require(self, part: str, dtypes: Iterable[torch.dtype], dims: int | None = None) -> TensorEntry:
        """The entry of a part. Raises InputError when it is missing, or of another dtype or number of dimensions."""
        entry, allowed = self.entry(part), tuple(dtypes)
        if entry.dtype not in allowed:
            self.refuse(part, f"is {entry.dtype}, not {' or '.join(map(str, allowed))}")
        if dims is not None and len(entry.shape) != dims:
            self.refuse(part, f"has shape {list(entry.shape)}, {dims} dimensions are needed")
        return entry

    def require_shape(self, part: str, shape: tuple[int, ...]) -> None:
        """Raise InputError unless a part has this shape."""
        if self.entry(part).shape != shape:
            self.refuse(part, f"has shape {list(self.entry(part).shape)}, the codes need {list(shape)}")

    def refuse(self, part: str, fault: str) -> NoReturn:
        """Raise InputError that names the part and its file."""
        name = f"{self.module}.{part}"
        file = self.checkpoint.entry(name).file
        raise InputError(f"{file}: tensor {name} {fault}; restore the folder", file=file, tensor=name)

    def read(self, part: str) -> Tensor:
        """A part as it is stored."""
        return self.checkpoint.read(f"{self.module}.{part}")

    def read_rows(self, part: str, begin: int, end: int) -> Tensor:
        """Rows begin .. end of a part."""
        return self.checkpoint.read_rows(f"{self.module}.{part}", begin, end)

    def names(self, parts: Iterable[str]) -> set[str]:
        """Full names of those of `parts` that exist."""
        return {f"{self.module}.{part}" for part in parts if part in self}


def setting(checkpoint: Checkpoint, entry: dict[str, Any], key: str, allowed: Collection[Any], default: Any) -> Any:
    """A field of quantization_config. Raises UnsupportedError for a value that is not in `allowed`."""
    value = entry.get(key, default)
    if not any(value == known and type(value) is type(known) for known in allowed):
        where = checkpoint.path / "config.json"
        raise UnsupportedError(
            f"{where}: {entry.get('quant_method')} with {key} {str(value)[:40]!r} is not read (read: "
            f"{', '.join(map(str, allowed))}); start from the original checkpoint",
            file=where,
        )
    return value


def modules_with(checkpoint: Checkpoint, part: str) -> list[str]:
    """The modules that have a tensor whose name ends in `part`, in the order of the checkpoint."""
    suffix = f".{part}"
    return [name.removesuffix(suffix) for name in checkpoint.entries if name.endswith(suffix)]


def drop_runtime_parts(checkpoint: Checkpoint, description: FormatDescription) -> None:
    """Leave out the tensors that describe activations and KV cache, and say so."""
    names = {name for name in checkpoint.entries if name.rpartition(".")[2] in RUNTIME_PARTS}
    if names:
        description.consumed |= names
        description.dropped.append(f"{len(names)} scales of activations or of the KV cache")
