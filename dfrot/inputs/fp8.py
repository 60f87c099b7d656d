"""`quant_method: fp8`: weights in float8_e4m3fn, with a scale per block, per output channel or per tensor.

`weight_scale_inv` multiplies, whatever its name says (transformers `integrations/finegrained_fp8.py`). Blocks begin at
the first row and column; those at the edges are cut.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError
from dfrot.inputs.codes import exponents, repeated
from dfrot.inputs.dense_view import DenseTensor
from dfrot.inputs.stored_parts import FormatDescription, StoredParts, drop_runtime_parts, modules_with

SCALES = ("weight_scale_inv", "weight_scale")
SCALE_DTYPES = tuple(
    getattr(torch, name)
    for name in ("float32", "bfloat16", "float16", "uint8", "float8_e8m0fnu")
    if hasattr(torch, name)
)


def read_format(checkpoint: Checkpoint, entry: dict[str, Any], dtype: torch.dtype) -> FormatDescription:
    """Describe an FP8 folder. A `FolderFormat`."""
    block = _block_size(checkpoint, entry)
    description = FormatDescription("FP8 (e4m3)")
    for module in modules_with(checkpoint, "weight"):
        parts = StoredParts(checkpoint, module)
        if parts.entry("weight").dtype == torch.float8_e4m3fn:
            description.tensors.append(fp8_weight(parts, block, dtype))
            description.consumed |= parts.names(("weight", *SCALES))
    drop_runtime_parts(checkpoint, description)
    return description


def _block_size(checkpoint: Checkpoint, entry: dict[str, Any]) -> tuple[int, int] | None:
    """`weight_block_size`: rows and columns that share a scale; None where it is not given."""
    value = entry.get("weight_block_size")
    if value is None:
        return None
    sizes = value if isinstance(value, list) else []
    if len(sizes) != 2 or not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        where = checkpoint.path / "config.json"
        raise InputError(f"{where}: weight_block_size {str(value)[:40]} is not two sizes; restore the file", file=where)
    return sizes[0], sizes[1]


def fp8_weight(parts: StoredParts, block: tuple[int, int] | None, dtype: torch.dtype) -> DenseTensor:
    """The dequantized weight of a module. Raises InputError for a scale that does not fit it."""
    codes = parts.require("weight", (torch.float8_e4m3fn,), 2)
    part = next((part for part in SCALES if part in parts), SCALES[0])
    scale = parts.require(part, SCALE_DTYPES)
    rows, cols = codes.shape
    if math.prod(scale.shape) == 1:
        step = (max(rows, 1), max(cols, 1))
    elif scale.shape in ((rows, 1), (rows,)):
        step = (1, max(cols, 1))
    elif block is None:
        parts.refuse(part, f"has shape {list(scale.shape)}, and config.json states no weight_block_size")
    else:
        step = block
        parts.require_shape(part, (-(-rows // block[0]), -(-cols // block[1])))

    def compute(begin: int, end: int) -> Tensor:
        first, last = begin // step[0], -(-end // step[0])
        factors = parts.read(part).reshape(-(-rows // step[0]), -(-cols // step[1]))[first:last]
        factors = exponents(factors) if factors.dtype.itemsize == 1 else factors.float()
        grown = repeated(factors, 0, step[0], end - first * step[0])[begin - first * step[0] :]
        return parts.read_rows("weight", begin, end).float() * repeated(grown, 1, step[1], cols)

    return DenseTensor(f"{parts.module}.weight", dtype, codes.shape, codes.file, compute)
