"""`quant_method: gptq`: `w[out, in] = scale (code - zero)`, scale and zero those of the input's group.

`qweight` int32 [in bits / 32, out] packs codes along inputs, `qzeros` [groups, out bits / 32] zeros along outputs,
both as dense bit strings (3 bits cross words); `scales` [groups, out]; `g_idx` [in] names the group of each input.
Version 1 stores zeros less one, `gptq_v2` stores them as they are. Bits and sizes follow from the shapes, so that rules
for single modules (`dynamic`) need no reading.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError
from dfrot.inputs.codes import WORD, unpack_bits
from dfrot.inputs.dense_view import DenseTensor, assembled
from dfrot.inputs.scale_grid import FLOAT_SCALES, group_columns
from dfrot.inputs.stored_parts import FormatDescription, StoredParts, drop_runtime_parts, modules_with, setting

PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)
VERSIONS = ("gptq", "gptq_v2")


def read_format(checkpoint: Checkpoint, entry: dict[str, Any], dtype: torch.dtype) -> FormatDescription:
    """Describe a GPTQ folder. A `FolderFormat`."""
    key = "checkpoint_format" if "checkpoint_format" in entry else "format"
    version = setting(checkpoint, entry, key, VERSIONS, VERSIONS[0])
    bits = setting(checkpoint, entry, "bits", BITS, None)
    setting(checkpoint, entry, "pack_dtype", ("int32", None), "int32")
    setting(checkpoint, entry, "rotation", (None,), None)
    ordered = bool(entry.get("desc_act"))
    group = _group_size(checkpoint, entry)
    description = FormatDescription(f"GPTQ (version {VERSIONS.index(version) + 1})")
    for module in modules_with(checkpoint, "qweight"):
        parts = StoredParts(checkpoint, module)
        stored_bits = _bits(parts)
        if stored_bits != bits and not entry.get("dynamic"):
            parts.refuse("qweight", f"holds codes of {stored_bits} bits, config.json says {bits}")
        offset = 1 if version == VERSIONS[0] else 0
        description.tensors.append(_weight(parts, stored_bits, offset, group, ordered, dtype))
        description.consumed |= parts.names(PARTS)
    drop_runtime_parts(checkpoint, description)
    return description


def _group_size(checkpoint: Checkpoint, entry: dict[str, Any]) -> int:
    """`group_size`; -1: all inputs together."""
    size = entry.get("group_size", -1)
    if type(size) is not int or not (size == -1 or 0 < size < 2**31):
        where = checkpoint.path / "config.json"
        raise InputError(f"{where}: group_size {str(size)[:40]!r} is not a size; restore the file", file=where)
    return size


def _bits(parts: StoredParts) -> int:
    """Bits of a code, from the shapes of zeros and scales."""
    zeros = parts.require("qzeros", (torch.int32,), 2).shape
    outputs = parts.require("scales", FLOAT_SCALES, 2).shape[1]
    bits = zeros[1] * WORD / outputs if outputs else 0
    if bits not in BITS:
        parts.refuse("qzeros", f"has {zeros[1]} columns for {outputs} outputs, which fits no width of {list(BITS)}")
    return int(bits)


def _weight(parts: StoredParts, bits: int, offset: int, group: int, ordered: bool, dtype: torch.dtype) -> DenseTensor:
    """The dequantized weight of a module. offset: what stored zeros lack."""
    codes = parts.require("qweight", (torch.int32,), 2)
    groups, outputs = parts.entry("scales").shape
    if codes.shape[1] != outputs or codes.shape[0] * WORD % bits:
        parts.refuse("qweight", f"has shape {list(codes.shape)}, the scales need {outputs} columns")
    parts.require_shape("qzeros", (groups, outputs * bits // WORD))
    inputs = codes.shape[0] * WORD // bits
    columns = _columns(parts, inputs, groups, group, ordered)

    def compute(begin: int, end: int) -> Tensor:
        packed = parts.read("qweight")
        scales = parts.read("scales").float()
        zeros = unpack_bits(parts.read("qzeros"), bits, outputs, 1).float() + offset

        def some(first: int, last: int) -> Tensor:
            out = slice(begin + first, begin + last)
            values = unpack_bits(packed[:, out], bits, inputs, 0).float() - zeros[:, out][columns]
            return (values * scales[:, out][columns]).t()

        return assembled((end - begin, inputs), dtype, some)

    return DenseTensor(f"{parts.module}.weight", dtype, (outputs, inputs), codes.file, compute, whole=True)


def _columns(parts: StoredParts, inputs: int, groups: int, group: int, ordered: bool) -> Tensor:
    """The group of each input.

    Without act-order some writers leave `g_idx` at zero; its groups are then consecutive, as engines read them."""
    columns = group_columns(parts, "g_idx", inputs, groups)
    if columns is not None and (ordered or groups == 1 or bool(columns.any())):
        return columns
    size = group if group > 0 else max(inputs, 1)
    if -(-inputs // size) != groups:
        if not groups or inputs % groups:
            parts.refuse("scales", f"has {groups} groups, {inputs} inputs in groups of {group} need others")
        size = inputs // groups
    return torch.arange(inputs) // size
