"""One safetensors file of named tensors, written atomically."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dfrot.checkpoint import read_header, read_tensor
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError
from dfrot.files import fsync_folder

NEVER_SPLIT = 1 << 62  # shard size in bytes beyond any file


def save_tensors(
    file: Path, tensors: dict[str, Tensor], gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> None:
    """Write `tensors` beside `file` and rename the result: the file is complete or not there.

    gather: assembles a tensor that several processes hold parts of. It is called for one tensor after the other, in
    the order of `tensors`, so that only one is assembled at a time."""
    plan = [TensorPlan(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(tensors.items())]
    stem = f".{file.stem}.new"
    writer = SafetensorsWriter(file.parent, plan, stem, shard_bytes=NEVER_SPLIT)
    for name, tensor in tensors.items():
        writer.write(name, gather(tensor))
    writer.sync()
    (file.parent / f"{stem}.safetensors").replace(file)
    fsync_folder(file.parent)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file by name. Raises InputError when it is missing or damaged."""
    if not file.is_file():
        raise InputError(f"{file}: file not found; its folder is incomplete, make it again", file=file)
    return {name: read_tensor(entry) for name, entry in read_header(file).items()}
