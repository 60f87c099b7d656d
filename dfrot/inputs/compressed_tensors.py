"""`quant_method: compressed-tensors`: integer and float codes, packed or one per element.

Integers: `scale * (code - zero)`; codes that are packed are stored with 2^(bits - 1) added, zero points too, so the
difference needs no correction. NVFP4 divides its scales by `weight_global_scale`; MXFP4 and MXFP8 store exponents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.inputs.codes import packed_words, unpack_bits
from dfrot.inputs.ct_schemes import ELEMENTWISE, MXFP4, NVFP4, PACKED, WeightScheme, read_schemes
from dfrot.inputs.dense_view import DenseTensor
from dfrot.inputs.scale_grid import SCALE_DTYPES, ScaleGrid, group_columns, read_scales
from dfrot.inputs.stored_parts import FormatDescription, StoredParts, drop_runtime_parts, modules_with
from dfrot.number_formats import fp4_values

BESIDE_CODES = ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale")
MAX_SIZE = 2**31  # of a stored weight_shape


def read_format(checkpoint: Checkpoint, entry: dict[str, Any], dtype: torch.dtype) -> FormatDescription:
    """Describe a folder of compressed-tensors. A `FolderFormat`."""
    table = read_schemes(entry, checkpoint.path / "config.json")
    names: dict[str, None] = {}
    description = FormatDescription("compressed-tensors")
    for module in dict.fromkeys(
        [*modules_with(checkpoint, "weight_packed"), *modules_with(checkpoint, "weight_scale")]
    ):
        parts = StoredParts(checkpoint, module)
        scheme = table.of(module)
        names[scheme.format] = None
        codes, other = ("weight", "weight_packed") if scheme.format in ELEMENTWISE else ("weight_packed", "weight")
        if codes in parts and other in parts:
            parts.refuse(other, f"is stored beside {codes}, which is what {scheme.format} reads")
        description.tensors.append(_weight(parts, scheme, dtype))
        description.consumed |= parts.names((codes, *BESIDE_CODES))
    description.name = f"compressed-tensors ({', '.join(names)})"
    drop_runtime_parts(checkpoint, description)
    if table.quantizes_activations:
        description.dropped.append("quantization of activations or of the KV cache")
    return description


def _weight(parts: StoredParts, scheme: WeightScheme, dtype: torch.dtype) -> DenseTensor:
    """The dequantized weight of a module."""
    if scheme.format == PACKED:
        return _packed_integers(parts, scheme, dtype)
    if scheme.format in (NVFP4, MXFP4):
        return _fp4(parts, scheme, dtype)
    assert scheme.format in ELEMENTWISE
    return _elementwise(parts, scheme, dtype)


def _grid(parts: StoredParts, scheme: WeightScheme, rows: int, cols: int) -> ScaleGrid:
    """The grid of a weight's scales, which must fit it."""
    steps: dict[str, tuple[int | None, int | None]] = {
        "tensor": (None, None),
        "channel": (1, None),
        "group": (1, scheme.group),
        "tensor_group": (1, scheme.group),
        "block": scheme.block or (None, None),
    }
    grid = ScaleGrid.of(rows, cols, *steps[scheme.strategy])
    parts.require("weight_scale", SCALE_DTYPES)
    grid.require(parts, "weight_scale")
    return grid


def _packed_integers(parts: StoredParts, scheme: WeightScheme, dtype: torch.dtype) -> DenseTensor:
    """Integers as dense bit strings along rows."""
    rows, cols = _stored_shape(parts)
    codes = parts.require("weight_packed", (torch.int32,), 2)
    parts.require_shape("weight_packed", (rows, packed_words(cols, scheme.bits)))
    grid = _grid(parts, scheme, rows, cols)
    columns = group_columns(parts, "weight_g_idx", cols, grid.shape[1])
    if not scheme.symmetric:
        parts.require("weight_zero_point", (torch.int32,), 2)
        parts.require_shape("weight_zero_point", (packed_words(grid.shape[0], scheme.bits), grid.shape[1]))

    def compute(begin: int, end: int) -> Tensor:
        values = unpack_bits(parts.read_rows("weight_packed", begin, end), scheme.bits, cols, 1).float()
        if scheme.symmetric:
            values -= 2 ** (scheme.bits - 1)
        else:
            zeros = unpack_bits(parts.read("weight_zero_point"), scheme.bits, grid.shape[0], 0).float()
            values -= grid.spread(zeros[grid.touched(begin, end)], begin, end, columns)
        scales = read_scales(grid, parts, "weight_scale", begin, end)
        return values * grid.spread(scales, begin, end, columns)

    return DenseTensor(f"{parts.module}.weight", dtype, (rows, cols), codes.file, compute)


def _stored_shape(parts: StoredParts) -> tuple[int, int]:
    """`weight_shape`: rows and columns of the weight."""
    parts.require("weight_shape", (torch.int64, torch.int32), 1)
    parts.require_shape("weight_shape", (2,))
    rows, cols = (int(size) for size in parts.read("weight_shape"))
    if not (0 <= rows < MAX_SIZE and 0 <= cols < MAX_SIZE):
        parts.refuse("weight_shape", f"holds {rows} x {cols}, which is no size of a weight")
    return rows, cols


def _elementwise(parts: StoredParts, scheme: WeightScheme, dtype: torch.dtype) -> DenseTensor:
    """A code per element: int8 or FP8."""
    codes = parts.require("weight", (torch.int8,) if scheme.kind == "int" else (torch.float8_e4m3fn,), 2)
    rows, cols = codes.shape
    grid = _grid(parts, scheme, rows, cols)
    columns = group_columns(parts, "weight_g_idx", cols, grid.shape[1])
    if not scheme.symmetric:
        parts.require("weight_zero_point", (torch.int8,))
        grid.require(parts, "weight_zero_point")

    def compute(begin: int, end: int) -> Tensor:
        values = parts.read_rows("weight", begin, end).float()
        if not scheme.symmetric:
            zeros = grid.read(parts, "weight_zero_point", begin, end).float()
            values -= grid.spread(zeros, begin, end, columns)
        scales = read_scales(grid, parts, "weight_scale", begin, end)
        return values * grid.spread(scales, begin, end, columns)

    return DenseTensor(f"{parts.module}.weight", dtype, (rows, cols), codes.file, compute)


def _fp4(parts: StoredParts, scheme: WeightScheme, dtype: torch.dtype) -> DenseTensor:
    """FP4 in pairs along rows."""
    codes = parts.require("weight_packed", (torch.uint8,), 2)
    rows, cols = codes.shape[0], 2 * codes.shape[1]
    grid = _grid(parts, scheme, rows, cols)
    if scheme.format == NVFP4:
        parts.require("weight_scale", (torch.float8_e4m3fn,))
        parts.require("weight_global_scale", (torch.float32,))
        parts.require_shape("weight_global_scale", (1,))

    def compute(begin: int, end: int) -> Tensor:
        scales = read_scales(grid, parts, "weight_scale", begin, end)
        if scheme.format == NVFP4:
            scales = scales / parts.read("weight_global_scale")
        return fp4_values(parts.read_rows("weight_packed", begin, end)) * grid.spread(scales, begin, end)

    return DenseTensor(f"{parts.module}.weight", dtype, (rows, cols), codes.file, compute)
