"""Which rows of which GGUF tensor make each tensor of the model, and reading them.

A tensor is dequantized in float32, a few million elements at a time. Blocks lie within rows, so rows can be read alone:
those of q and k in the order of Hugging Face, which pairs element i of a head with i + d/2 where llama.cpp's `llama`
and `granite` graphs pair 2i with 2i + 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dfrot.arch.gguf import GGUFNames
from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs.gguf.blocks import BLOCKS, DENSE, dequantize
from dfrot.inputs.gguf.header import GGUFTensor

CHUNK = 1 << 22  # elements that are dequantized at a time
DIVISORS = "rope_freqs.weight"
"""The tensor with Llama 3's scaling of frequencies, which is configuration."""


@dataclass(frozen=True)
class StoredRows:
    """One tensor of the model as it lies in a GGUF file."""

    tensor: GGUFTensor
    """Where it lies."""
    pairs: int = 0
    """Above 0: rows per head; in each head, pairs of llama.cpp's RoPE are neighbours."""
    offset: float = 0.0
    """What is subtracted from every value."""

    @property
    def columns(self) -> int:
        """Elements of a row; 1 for a vector."""
        return self.tensor.shape[1] if len(self.tensor.shape) == 2 else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        block, nbytes = BLOCKS[self.tensor.type]
        return self.columns // block * nbytes


def map_tensors(
    tensors: Iterable[GGUFTensor], names: GGUFNames, layers: int, head_dim: int, where: str
) -> dict[str, StoredRows]:
    """Hugging Face's names -> what the file stores, without `rope_freqs.weight`.

    where: how messages name the file. Raises UnsupportedError for a tensor that has no place in the model, InputError
    for a shape that no such tensor has."""
    modules = {names.embed: "model.embed_tokens", names.final_norm: "model.norm", names.head: "lm_head"}
    interleaved = set()
    merged: dict[str, str] = {}
    for layer in range(layers):
        merged |= {
            f"blk.{layer}.{gguf_name}.weight": f"model.layers.{layer}.{part}.weight"
            for part, gguf_name in names.experts.items()
        }
        for part, gguf_name in names.parts.items():
            modules[f"blk.{layer}.{gguf_name}"] = f"model.layers.{layer}.{part}"
            if part in names.interleaved:
                interleaved.add(f"blk.{layer}.{gguf_name}")
    mapped: dict[str, StoredRows] = {}
    for tensor in tensors:
        if tensor.name == DIVISORS:
            continue
        if tensor.name in merged:
            mapped |= _split_experts(tensor, merged[tensor.name], where)
            continue
        module, _, kind = tensor.name.rpartition(".")
        if module not in modules or kind not in ("weight", "bias"):
            raise UnsupportedError(
                f"{where}: tensor {tensor.name[:60]} has no place in a {names.arch} model that dfq knows",
                file=tensor.file,
                tensor=tensor.name,
            )
        name = f"{modules[module]}.{kind}"
        is_norm = "norm" in name.rpartition(".")[0].rpartition(".")[2]
        pairs = head_dim if module in interleaved else 0
        mapped[name] = checked_rows(StoredRows(tensor, pairs, names.norm_offset if is_norm else 0.0), where)
    return mapped


def _split_experts(tensor: GGUFTensor, name: str, where: str) -> dict[str, StoredRows]:
    """Hugging Face's names of the matrices in `tensor` [experts, rows, columns]; `{}` in `name` is the expert.

    Raises InputError for a tensor of another shape."""
    if len(tensor.shape) != 3 or not tensor.shape[0]:
        raise InputError(
            f"{where}: tensor {tensor.name[:60]}: shape {list(tensor.shape)} is not a matrix per expert",
            file=tensor.file,
            tensor=tensor.name,
        )
    count, nbytes = tensor.shape[0], tensor.nbytes // tensor.shape[0]
    experts = (
        replace(tensor, shape=tensor.shape[1:], nbytes=nbytes, start=tensor.start + index * nbytes)
        for index in range(count)
    )
    return {name.format(index): checked_rows(StoredRows(expert), where) for index, expert in enumerate(experts)}


def checked_rows(rows: StoredRows, where: str) -> StoredRows:
    """`rows` itself. Raises InputError for a shape that cannot be read."""
    tensor = rows.tensor
    vector = len(tensor.shape) == 1
    if len(tensor.shape) not in (1, 2) or (vector and tensor.type not in DENSE):
        raise InputError(
            f"{where}: tensor {tensor.name[:60]}: {tensor.type} of shape {list(tensor.shape)} is no matrix or vector",
            file=tensor.file,
            tensor=tensor.name,
        )
    if rows.pairs and tensor.shape[0] % rows.pairs:
        raise InputError(
            f"{where}: tensor {tensor.name[:60]}: {tensor.shape[0]} rows are not whole heads of {rows.pairs}",
            file=tensor.file,
            tensor=tensor.name,
        )
    return rows


def read_rows(rows: StoredRows, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """Rows begin..end of a tensor in Hugging Face's order and layout, rounded once from float32 to `dtype`.

    Raises InputError for NaN, Inf, values beyond `dtype`, and a file that has become shorter."""
    tensor = rows.tensor
    begin, end = max(0, begin), min(end, tensor.shape[0])
    out = torch.empty((max(0, end - begin), rows.columns), dtype=dtype)
    unit = rows.pairs or 1
    step = max(1, CHUNK // max(1, rows.columns) // unit) * unit
    with tensor.file.open("rb", buffering=0) as handle:
        position = begin
        while position < end:
            first = position // unit * unit
            last = min(-(-min(first + step, end) // unit) * unit, tensor.shape[0])
            data = torch.empty((last - first) * rows.row_bytes, dtype=torch.uint8)
            _fill(handle, tensor, data, tensor.start + first * rows.row_bytes)
            values = _deinterleaved(dequantize(data.view(last - first, -1), tensor.type), rows.pairs)
            values = values[position - first : min(last, end) - first]
            out[position - begin : position - begin + len(values)] = _rounded(
                values - rows.offset if rows.offset else values, dtype, tensor
            )
            position += len(values)
    return out if len(tensor.shape) == 2 else out.flatten()


def read_vector(tensor: GGUFTensor, where: str) -> Tensor:
    """A vector in float32. where: how messages name the file. Raises InputError for another shape."""
    if len(tensor.shape) != 1:
        raise InputError(f"{where}: tensor {tensor.name[:60]}: is no vector", file=tensor.file, tensor=tensor.name)
    return read_rows(checked_rows(StoredRows(tensor), where), 0, tensor.shape[0], torch.float32)


def _fill(handle: object, tensor: GGUFTensor, data: Tensor, start: int) -> None:
    """Read bytes of the file into `data`."""
    view, done = data.numpy().data, 0
    handle.seek(start)  # type: ignore[attr-defined]
    while done < len(view):
        count = handle.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise InputError(
                f"{tensor.file}: tensor {tensor.name}: truncated while reading", file=tensor.file, tensor=tensor.name
            )
        done += count


def _deinterleaved(values: Tensor, pairs: int) -> Tensor:
    """values [heads * d, n] of llama.cpp -> in each head, the first elements of all pairs before the second ones."""
    if not pairs:
        return values
    return values.view(-1, pairs // 2, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)


def _rounded(values: Tensor, dtype: torch.dtype, tensor: GGUFTensor) -> Tensor:
    """`values` in `dtype`. Raises InputError for what is not finite."""
    rounded = values.to(dtype)
    if rounded.numel() and not bool(torch.isfinite(rounded.abs().max())):
        beyond = bool(torch.isfinite(values).all())
        fault = f"holds values beyond {dtype}" if beyond else "holds NaN or Inf; the file is damaged, fetch it again"
        raise InputError(f"{tensor.file}: tensor {tensor.name}: {fault}", file=tensor.file, tensor=tensor.name)
    return rounded
