"""Opening a model, whatever tool wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.arch import BoundArch, described
from dfrot.checkpoint import Checkpoint
from dfrot.dtypes import DTYPES
from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs import awq, bitsandbytes, compressed_tensors, fp8, gptq, mxfp4
from dfrot.inputs.dense_view import DenseTensor, DequantizedCheckpoint, stored_tensor
from dfrot.inputs.gguf.folder import gguf_file
from dfrot.inputs.gguf.open import open_gguf
from dfrot.inputs.stored_parts import FolderFormat

OWN = "dfq"  # quant_method of our own folders, which the stages read themselves

FOLDER_FORMATS: dict[str, FolderFormat] = {
    "fp8": fp8.read_format,
    "fbgemm_fp8": fp8.read_format,
    "compressed-tensors": compressed_tensors.read_format,
    "gptq": gptq.read_format,
    "awq": awq.read_format,
    "mxfp4": mxfp4.read_format,
    "bitsandbytes": bitsandbytes.read_format,
}
"""`quant_method` of config.json -> reader of the format."""


def open_model(path: Path | str, dtype: torch.dtype | None = None) -> Checkpoint:
    """Open a model without reading any weight: a 16-bit folder, one of dfq's, or a quantized one of another tool, whose
    weights are dequantized when they are read.

    Args:
        path: a Hugging Face folder, a GGUF file, or a folder with one.
        dtype: of every weight; None leaves those that are not quantized as they are stored, and dequantizes the others
            to the dtype that config.json names (bfloat16 where it names none).

    Raises InputError or UnsupportedError in one line, naming file, tensor and remedy."""
    path = Path(path)
    if (file := gguf_file(path)) is not None:
        return open_gguf(file, dtype)
    if path.is_file():
        raise InputError(f"{path}: is a file; give a checkpoint folder or a .gguf file", file=path)
    checkpoint = Checkpoint.open(path)
    entry = checkpoint.config.get("quantization_config")
    if entry is None or (isinstance(entry, dict) and entry.get("quant_method") == OWN):
        return checkpoint if dtype is None else _cast(checkpoint, dtype)
    return _dequantized(checkpoint, entry, dtype)


def open_described_model(path: Path | str) -> tuple[Checkpoint, BoundArch]:
    """Open a model and check it against its architecture's description. Raises DfqError where it does not fit."""
    return described(open_model(path))


def dense_dtype(config: dict[str, Any]) -> torch.dtype:
    """The dtype that a config.json names for its weights; bfloat16 where it names none."""
    text = config.get("text_config")
    for level in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(value := level.get(key), str) and value in DTYPES:
                return DTYPES[value]
    return torch.bfloat16


def _cast(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """A 16-bit checkpoint in another dtype."""
    tensors = [stored_tensor(checkpoint, name, _cast_dtype(checkpoint, name, dtype)) for name in checkpoint.entries]
    view = DequantizedCheckpoint(
        checkpoint.path, checkpoint.config, tensors, checkpoint.digest, "16-bit checkpoint", dtype
    )
    view.resolved = checkpoint.resolved
    return view


def _cast_dtype(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> torch.dtype | None:
    """`dtype` for a tensor of real numbers, None for one of integers."""
    return dtype if checkpoint.entry(name).dtype.is_floating_point else None


def _dequantized(checkpoint: Checkpoint, entry: Any, dtype: torch.dtype | None) -> DequantizedCheckpoint:
    """The view of a quantized folder of another tool; entry: its `quantization_config`."""
    where = checkpoint.path / "config.json"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: quantization_config is not an object; restore the file", file=where)
    method = entry.get("quant_method")
    if not isinstance(method, str) or method not in FOLDER_FORMATS:
        name = repr(method)[:40]
        raise UnsupportedError(
            f"{where}: already quantized with {name}, which dfq does not read (it reads {', '.join(FOLDER_FORMATS)}); "
            "start from the original checkpoint",
            file=where,
        )
    dense = dtype or dense_dtype(checkpoint.config)
    description = FOLDER_FORMATS[method](checkpoint, entry, dense)
    quantized: dict[str, DenseTensor] = {tensor.name: tensor for tensor in description.tensors}
    tensors = list(description.tensors)
    for name, stored in checkpoint.entries.items():
        if name in description.consumed:
            continue
        if name in quantized:
            raise InputError(
                f"{stored.file}: tensor {name} is stored twice, quantized and not; restore the folder",
                file=stored.file,
                tensor=name,
            )
        is_code = not stored.dtype.is_floating_point and name.endswith(".weight")
        if is_code or (stored.dtype.is_floating_point and stored.dtype.itemsize == 1):
            raise InputError(
                f"{stored.file}: tensor {name} is {stored.dtype} and has no scale that {method} defines; restore the "
                "folder",
                file=stored.file,
                tensor=name,
            )
        tensors.append(stored_tensor(checkpoint, name, dtype and _cast_dtype(checkpoint, name, dtype)))
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    view = DequantizedCheckpoint(
        checkpoint.path, config, tensors, checkpoint.digest, description.name, dense, description.dropped
    )
    view.resolved = checkpoint.resolved
    return view
