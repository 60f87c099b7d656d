"""Values as bytes: trees of dicts, lists, strings, numbers and CPU tensors, without pickle.

A JSON header states the tree and the dtypes and shapes of its tensors; their data follows, each aligned.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

ALIGNED = 64  # bytes: as torch allocates, so that BLAS computes the same with what came from another rank
TENSOR, DICT = "tensor", "dict"


def encode(value: Any) -> Tensor:
    """uint8 [n]. Raises TypeError for values that do not travel."""
    tensors: list[Tensor] = []
    header = json.dumps({"tree": _plain(value, tensors), "tensors": [_description(tensor) for tensor in tensors]})
    raw = header.encode()
    raw = len(raw).to_bytes(8, "little") + raw
    parts = [_padded(torch.frombuffer(bytearray(raw), dtype=torch.uint8))]
    parts += [_padded(tensor.detach().contiguous().flatten().view(torch.uint8)) for tensor in tensors if tensor.numel()]
    return torch.cat(parts)


def decode(data: Tensor) -> Any:
    """The value that `encode` turned into these bytes. Its tensors may be views of `data`, which begins aligned."""
    length = int.from_bytes(data[:8].numpy().tobytes(), "little")
    header = json.loads(data[8 : 8 + length].numpy().tobytes())
    position = _aligned(8 + length)
    tensors = []
    for dtype_name, shape in header["tensors"]:
        dtype = getattr(torch, dtype_name)
        nbytes = math.prod(shape) * dtype.itemsize
        tensors.append(data[position : position + nbytes].view(dtype).view(shape) if nbytes else _empty(shape, dtype))
        position += _aligned(nbytes)
    return _restored(header["tree"], tensors)


def _empty(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED


def _padded(data: Tensor) -> Tensor:
    return torch.nn.functional.pad(data, (0, _aligned(len(data)) - len(data)))


def _description(tensor: Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _plain(value: Any, tensors: list[Tensor]) -> Any:
    """A JSON value in which tensors are numbers; they are appended to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {TENSOR: len(tensors) - 1}
    if isinstance(value, dict):
        return {DICT: [[key, _plain(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_plain(item, tensors) for item in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{type(value).__name__} does not travel between ranks")


def _restored(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, list):
        return [_restored(item, tensors) for item in tree]
    if isinstance(tree, dict):
        if TENSOR in tree:
            return tensors[tree[TENSOR]]
        return {key: _restored(item, tensors) for key, item in tree[DICT]}
    return tree
