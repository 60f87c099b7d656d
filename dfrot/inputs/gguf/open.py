"""A GGUF file, or a folder that holds one, as a 16-bit checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from dfrot.inputs.dense_view import DenseTensor, DequantizedCheckpoint
from dfrot.inputs.gguf.folder import gguf_folder
from dfrot.inputs.gguf.model import GGUFModel, read_model
from dfrot.inputs.gguf.tensors import StoredRows, read_rows


def open_gguf(file: Path, dtype: torch.dtype | None = None) -> DequantizedCheckpoint:
    """Open a GGUF file without reading any weight.

    dtype: of every tensor; None: float32 or float16 where every matrix is stored so, else bfloat16. The checkpoint's
    `path` is the folder with the tokenizer.

    Raises InputError for a damaged file, UnsupportedError for one that transformers would compute differently,
    ResourceError without the package gguf where it is needed."""
    return gguf_view(read_model(file, dtype, tokenizer=False), gguf_folder(file))


def gguf_view(model: GGUFModel, folder: Path) -> DequantizedCheckpoint:
    """The checkpoint that a GGUF file holds. folder: of its tokenizer."""
    tensors = [_dense(name, rows, model) for name, rows in model.tensors.items()]
    words = f"GGUF ({', '.join(model.types)})"
    return DequantizedCheckpoint(folder, model.config, tensors, model.digest, words, model.dtype)


def _dense(name: str, stored: StoredRows, model: GGUFModel) -> DenseTensor:
    """One tensor of the model."""

    def rows(begin: int, end: int) -> torch.Tensor:
        return read_rows(stored, begin, end, model.dtype)

    return DenseTensor(name, model.dtype, stored.tensor.shape, stored.tensor.file, rows)
