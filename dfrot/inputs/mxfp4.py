"""`quant_method: mxfp4`, the experts of gpt-oss: FP4 in blocks of 32 inputs with a power of two for each.

`NAME_blocks` uint8 [experts, rows, blocks, 16] holds two codes a byte, neighbours, the first in the low half;
`NAME_scales` uint8 [experts, rows, blocks] their exponents. The model's tensor is the transpose, [experts, in, rows].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.inputs.dense_view import DenseTensor
from dfrot.inputs.stored_parts import FormatDescription, StoredParts
from dfrot.number_formats import exponents, fp4_values

BLOCKS, SCALES = "_blocks", "_scales"
BYTES = 16
EXPONENTS = tuple(getattr(torch, name) for name in ("uint8", "float8_e8m0fnu") if hasattr(torch, name))


def read_format(checkpoint: Checkpoint, entry: dict[str, Any], dtype: torch.dtype) -> FormatDescription:
    """Describe a gpt-oss folder. A `FolderFormat`."""
    description = FormatDescription("MXFP4 experts")
    for name in checkpoint.entries:
        if name.endswith(BLOCKS):
            module, _, stem = name.removesuffix(BLOCKS).rpartition(".")
            description.tensors.append(_experts(StoredParts(checkpoint, module), stem, dtype))
            description.consumed |= {name, name.removesuffix(BLOCKS) + SCALES}
    return description


def _experts(parts: StoredParts, stem: str, dtype: torch.dtype) -> DenseTensor:
    """The dequantized weights of a layer's experts."""
    blocks, scales = stem + BLOCKS, stem + SCALES
    codes = parts.require(blocks, (torch.uint8,), 4)
    experts, rows, count, width = codes.shape
    if width != BYTES:
        parts.refuse(blocks, f"has blocks of {width} bytes, the format has {BYTES}")
    parts.require(scales, EXPONENTS, 3)
    parts.require_shape(scales, (experts, rows, count))

    def compute(begin: int, end: int) -> Tensor:
        values = fp4_values(parts.read_rows(blocks, begin, end))
        values *= exponents(parts.read_rows(scales, begin, end)).unsqueeze(-1)
        return values.flatten(2).transpose(1, 2)

    shape = (experts, count * 2 * BYTES, rows)
    return DenseTensor(f"{parts.module}.{stem}", dtype, shape, codes.file, compute)
