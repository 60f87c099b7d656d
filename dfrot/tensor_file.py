"""tensor_file"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dfrot.checkpoint import read_header, read_tensor
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError
from dfrot.files import fsync_folder


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


def load_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of one file, checked. Raises InputError when it is missing or damaged."""
    if not file.is_file():
        raise InputError(f"{file}: file not found; the draft is incomplete, make it again")
    return {name: read_tensor(entry) for name, entry in read_header(file).items()}
