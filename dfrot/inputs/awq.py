"""`quant_method: awq`, version gemm: `w[out, in] = scale (code - zero)` at 4 bits.

`qweight` int32 [in, out / 8] and `qzeros` [groups, out / 8] pack eight outputs into a word, in the order
0 2 4 6 1 3 5 7 of nibbles; `scales` [groups, out]; groups are consecutive inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.inputs.codes import unpack_bits
from dfrot.inputs.dense_view import DenseTensor, assembled
from dfrot.inputs.scale_grid import FLOAT_SCALES
from dfrot.inputs.stored_parts import FormatDescription, StoredParts, drop_runtime_parts, modules_with, setting

PARTS = ("qweight", "qzeros", "scales")
BITS, PER_WORD = 4, 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Output -> the nibble of its word."""


def read_format(checkpoint: Checkpoint, entry: dict[str, Any], dtype: torch.dtype) -> FormatDescription:
    """Describe an AWQ folder. A `FolderFormat`."""
    setting(checkpoint, entry, "bits" if "bits" in entry else "w_bit", (BITS,), None)
    version = entry.get("version", "gemm")
    if isinstance(version, str):
        entry = {**entry, "version": version.lower()}
    setting(checkpoint, entry, "version", ("gemm",), "gemm")
    setting(checkpoint, entry, "zero_point", (True,), True)
    description = FormatDescription("AWQ (gemm)")
    for module in modules_with(checkpoint, "qweight"):
        parts = StoredParts(checkpoint, module)
        description.tensors.append(_weight(parts, dtype))
        description.consumed |= parts.names(PARTS)
    drop_runtime_parts(checkpoint, description)
    return description


def _nibbles(words: Tensor) -> Tensor:
    """int32 [n, m] -> float32 codes [n, 8 m], outputs in order."""
    codes = unpack_bits(words, BITS, words.shape[1] * PER_WORD, 1).reshape(len(words), -1, PER_WORD)
    return codes[..., list(PLACES)].flatten(1).float()


def _weight(parts: StoredParts, dtype: torch.dtype) -> DenseTensor:
    """The dequantized weight of a module."""
    codes = parts.require("qweight", (torch.int32,), 2)
    inputs, outputs = codes.shape[0], codes.shape[1] * PER_WORD
    groups = parts.require("scales", FLOAT_SCALES, 2).shape[0]
    parts.require_shape("scales", (groups, outputs))
    parts.require("qzeros", (torch.int32,), 2)
    parts.require_shape("qzeros", (groups, codes.shape[1]))
    if not groups or inputs % groups:
        parts.refuse("scales", f"has {groups} groups for {inputs} inputs")
    columns = torch.arange(inputs) // (inputs // groups or 1)

    def compute(begin: int, end: int) -> Tensor:
        packed, zeros, scales = parts.read("qweight"), _nibbles(parts.read("qzeros")), parts.read("scales").float()

        def some(first: int, last: int) -> Tensor:
            out = slice(begin + first, begin + last)
            low, high = out.start // PER_WORD, -(-out.stop // PER_WORD)
            values = _nibbles(packed[:, low:high])[:, out.start - low * PER_WORD : out.stop - low * PER_WORD]
            return ((values - zeros[:, out][columns]) * scales[:, out][columns]).t()

        return assembled((end - begin, inputs), dtype, some)

    return DenseTensor(f"{parts.module}.weight", dtype, (outputs, inputs), codes.file, compute, whole=True)
