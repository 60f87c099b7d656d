"""`quant_method: bitsandbytes`: NF4 or FP4 in blocks of the flattened weight, or int8 with a scale per output.

4 bits: `weight` uint8 [n / 2, 1] holds two codes a byte, the first in the high half; `weight.quant_map` the 16 values,
`weight.absmax` the scale of each block. Scales may be codes themselves: `weight.nested_quant_map[code] *
weight.nested_absmax[block of scales] + nested_offset`. `weight.quant_state.bitsandbytes__nf4` (or `fp4`) is JSON in
bytes: shape, blocksize and so on. 8 bits: `weight` int8 times `SCB` / 127.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.inputs.dense_view import DenseTensor
from dfrot.inputs.stored_parts import FormatDescription, StoredParts, modules_with

STATE = "weight.quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
FOUR_BIT = ("weight", "weight.absmax", "weight.quant_map", *NESTED, *(STATE + kind for kind in KINDS))
EIGHT_BIT = ("weight", "SCB", "weight_format")
MAX_STATE = 1 << 14  # bytes of the JSON
INT8_RANGE = 127


def read_format(checkpoint: Checkpoint, entry: dict[str, Any], dtype: torch.dtype) -> FormatDescription:
    """Describe a folder of bitsandbytes. A `FolderFormat`."""
    description = FormatDescription("bitsandbytes")
    for module in modules_with(checkpoint, "weight.absmax"):
        parts = StoredParts(checkpoint, module)
        description.tensors.append(_four_bits(parts, dtype))
        description.consumed |= parts.names(FOUR_BIT)
        description.name = "bitsandbytes, 4 bits"
    for module in modules_with(checkpoint, "SCB"):
        parts = StoredParts(checkpoint, module)
        description.tensors.append(_eight_bits(parts, dtype))
        description.consumed |= parts.names(EIGHT_BIT)
        description.name = "bitsandbytes, 8 bits"
    return description


@dataclass(frozen=True)
class _Blocks:
    """The state of a 4-bit weight."""

    rows: int
    cols: int
    size: int
    """Weights per scale."""
    nested: int
    """Scales per scale of scales; 0: scales are numbers."""
    offset: float
    """What is added to scales that were codes."""

    @property
    def count(self) -> int:
        """Scales."""
        return -(-self.rows * self.cols // self.size)


def _blocks(parts: StoredParts) -> _Blocks:
    """Read and check the state. Raises InputError for one that does not fit the tensors."""
    part = next((STATE + kind for kind in KINDS if STATE + kind in parts), STATE + KINDS[0])
    shape = parts.require(part, (torch.uint8,), 1).shape
    if shape[0] > MAX_STATE:
        parts.refuse(part, f"has {shape[0]} bytes, a description needs few")
    try:
        state = json.loads(bytes(parts.read(part).tolist()))
        rows, cols = state["shape"]
        size, nested, offset = state["blocksize"], state.get("nested_blocksize", 0), state.get("nested_offset", 0.0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        parts.refuse(part, "is no description of 4-bit weights")
    sizes = (rows, cols, size, nested or 1)
    if not all(type(value) is int and 0 < value < 2**31 for value in sizes) or not _is_number(offset):
        parts.refuse(part, "is no description of 4-bit weights")
    return _Blocks(rows, cols, size, nested or 0, float(offset))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)


def _four_bits(parts: StoredParts, dtype: torch.dtype) -> DenseTensor:
    """A weight in NF4 or FP4."""
    blocks = _blocks(parts)
    codes = parts.require("weight", (torch.uint8,), 2)
    parts.require_shape("weight", (-(-blocks.rows * blocks.cols // 2), 1))
    parts.require("weight.quant_map", (torch.float32,), 1)
    parts.require_shape("weight.quant_map", (16,))
    parts.require("weight.absmax", (torch.uint8,) if blocks.nested else (torch.float32,), 1)
    parts.require_shape("weight.absmax", (blocks.count,))
    if blocks.nested:
        for part, length in zip(NESTED, (-(-blocks.count // blocks.nested), 256), strict=True):
            parts.require(part, (torch.float32,), 1)
            parts.require_shape(part, (length,))

    def compute(begin: int, end: int) -> Tensor:
        first, last = begin * blocks.cols, end * blocks.cols
        packed = parts.read_rows("weight", first // 2, -(-last // 2)).flatten()
        table = parts.read("weight.quant_map")
        values = table[torch.stack([packed >> 4, packed & 15], -1).flatten().int()]
        values = values[first % 2 :][: last - first]
        low, high = first // blocks.size, -(-last // blocks.size)
        cells = torch.arange(first, last) // blocks.size - low
        return (values * _scales(parts, blocks, low, high)[cells]).reshape(-1, blocks.cols)

    return DenseTensor(f"{parts.module}.weight", dtype, (blocks.rows, blocks.cols), codes.file, compute)


def _scales(parts: StoredParts, blocks: _Blocks, low: int, high: int) -> Tensor:
    """The scales of blocks low .. high, float32."""
    stored = parts.read_rows("weight.absmax", low, high)
    if not blocks.nested:
        return stored
    factors = parts.read(NESTED[0])[torch.arange(low, high) // blocks.nested]
    return parts.read(NESTED[1])[stored.int()] * factors + blocks.offset


def _eight_bits(parts: StoredParts, dtype: torch.dtype) -> DenseTensor:
    """A weight in int8, as it is stored when a model is saved."""
    codes = parts.require("weight", (torch.int8,), 2)
    rows = codes.shape[0]
    parts.require("SCB", (torch.float32,), 1)
    parts.require_shape("SCB", (rows,))
    if "weight_format" in parts:
        parts.require("weight_format", (torch.uint8,))
        if bool(parts.read("weight_format").any()):
            parts.refuse("weight_format", "names a layout of tiles, only rows are read")

    def compute(begin: int, end: int) -> Tensor:
        scales = parts.read("SCB")[begin:end].unsqueeze(1) * (1 / INT8_RANGE)
        return parts.read_rows("weight", begin, end).float() * scales

    return DenseTensor(f"{parts.module}.weight", dtype, codes.shape, codes.file, compute)
