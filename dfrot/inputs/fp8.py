"""`quant_method: fp8`: weights in float8_e4m3fn, with a scale per block, per output channel or per tensor.

`weight_scale_inv` multiplies, whatever its name says (transformers `integrations/finegrained_fp8.py`). Blocks begin at
the first row and column; those at the edges are cut. `fbgemm_fp8` stores the same with a scale per channel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError
from dfrot.inputs.dense_view import DenseTensor
from dfrot.inputs.scale_grid import SCALE_DTYPES, ScaleGrid, read_scales
from dfrot.inputs.stored_parts import FormatDescription, StoredParts, drop_runtime_parts, modules_with

SCALES = ("weight_scale_inv", "weight_scale")


def read_format(checkpoint: Checkpoint, entry: dict[str, Any], dtype: torch.dtype) -> FormatDescription:
    """Describe an FP8 folder. A `FolderFormat`."""
    block = _block_size(checkpoint, entry)
    description = FormatDescription("FP8 (e4m3)")
    for module in modules_with(checkpoint, "weight"):
        parts = StoredParts(checkpoint, module)
        if parts.entry("weight").dtype == torch.float8_e4m3fn:
            description.tensors.append(fp8_weight(parts, _grid(parts, block), dtype))
            description.consumed |= parts.names(("weight", *SCALES))
    drop_runtime_parts(checkpoint, description)
    description.dropped.append("rounding of activations to FP8")
    return description


def _block_size(checkpoint: Checkpoint, entry: dict[str, Any]) -> tuple[int, int] | None:
    """`weight_block_size`: rows and columns that share a scale; None where it is not given."""
    value = entry.get("weight_block_size")
    if value is None:
        return None
    sizes = value if isinstance(value, list) else []
    if len(sizes) != 2 or not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        where = checkpoint.path / "config.json"
        raise InputError(
            f"{where}: weight_block_size {str(value)[:40]!r} is not two sizes; restore the file", file=where
        )
    return sizes[0], sizes[1]


def _scale_part(parts: StoredParts) -> str:
    return next((part for part in SCALES if part in parts), SCALES[0])


def _grid(parts: StoredParts, block: tuple[int, int] | None) -> ScaleGrid:
    """The grid that the shape of the scale means. Raises InputError for a scale that is missing or fits no grid."""
    rows, cols = parts.require("weight", (torch.float8_e4m3fn,), 2).shape
    part = _scale_part(parts)
    shape = parts.require(part, SCALE_DTYPES).shape
    if math.prod(shape) == 1:
        return ScaleGrid.of(rows, cols)
    if shape in ((rows, 1), (rows,)):
        return ScaleGrid.of(rows, cols, 1)
    if block is None:
        parts.refuse(part, f"has shape {list(shape)}, and config.json states no weight_block_size")
    return ScaleGrid.of(rows, cols, *block)


def fp8_weight(parts: StoredParts, grid: ScaleGrid, dtype: torch.dtype) -> DenseTensor:
    """The dequantized weight of a module. Raises InputError for a scale that does not fit it."""
    codes = parts.require("weight", (torch.float8_e4m3fn,), 2)
    part = _scale_part(parts)
    parts.require(part, SCALE_DTYPES)
    grid.require(parts, part)

    def compute(begin: int, end: int) -> Tensor:
        factors = grid.spread(read_scales(grid, parts, part, begin, end), begin, end)
        return parts.read_rows("weight", begin, end).float() * factors

    return DenseTensor(f"{parts.module}.weight", dtype, codes.shape, codes.file, compute)
