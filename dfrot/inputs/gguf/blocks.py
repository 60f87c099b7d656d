"""The blocks of GGUF as float32 values.

Plain types are views of the bytes; blocks are dequantized by the package `gguf`, which llama.cpp's authors maintain.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dfrot.errors import ResourceError, UnsupportedError
from dfrot.inputs.gguf.header import TYPES
from dfrot.inputs.gguf.package import gguf_package

DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""Types that hold one number per element."""
NO_WEIGHTS = ("I8", "I16", "I32", "I64", "Q8_1", "Q8_K")
"""Integers, and types that llama.cpp uses for activations only."""
BLOCKS = {name: (block, nbytes) for name, block, nbytes in TYPES.values() if name not in NO_WEIGHTS}
"""ggml type -> elements and bytes of a block."""


def require_readable(types: set[str], where: str) -> None:
    """Raise UnsupportedError for a ggml type that holds no weights or is unknown, ResourceError where the package
    `gguf` is needed and missing. where: how messages name the file."""
    if unknown := sorted(types - set(BLOCKS)):
        raise UnsupportedError(f"{where}: tensors of ggml type {unknown[0]} cannot be read")
    blocks = types - set(DENSE)
    if not blocks:
        return
    package = gguf_package(f"{where}: holds {', '.join(sorted(blocks))}")
    known = {kind.name for kind in package.GGMLQuantizationType}
    if missing := sorted(blocks - known):
        raise ResourceError(f"{where}: holds {missing[0]}, which the installed gguf does not know; update it")


def dequantize(data: Tensor, kind: str) -> Tensor:
    """uint8 [rows, bytes per row] of ggml type `kind` -> float32 [rows, columns]."""
    if kind in DENSE:
        return data.view(DENSE[kind]).float()
    gguf = gguf_package()
    with np.errstate(all="ignore"):  # scales of damaged blocks; what is not finite is refused later
        values = gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(values).view(len(data), -1)
