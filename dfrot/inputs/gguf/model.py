"""What a GGUF file holds, as a Hugging Face folder would: config.json, tensors by name, files of the tokenizer.

A model may be split over several files, which then all lie in one folder and are named `NAME-00001-of-00003.gguf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dfrot.errors import InputError
from dfrot.files import digest_bytes
from dfrot.inputs.gguf.blocks import require_readable
from dfrot.inputs.gguf.config import head_size, read_config, tensor_names
from dfrot.inputs.gguf.header import GGUFHeader, GGUFTensor, read_header
from dfrot.inputs.gguf.metadata import GGUFMetadata
from dfrot.inputs.gguf.tensors import DIVISORS, StoredRows, map_tensors, read_vector
from dfrot.inputs.gguf.tokenizer import MERGES, SCORES, tokenizer_files
from dfrot.inputs.gguf.vocabulary import TOKENS, TYPES

EMBEDDING = "model.embed_tokens.weight"
MAX_LAYERS = 1 << 12
MAX_PARTS = 1 << 10
SAMPLE_BYTES = 4096  # per place, of the three in each tensor that a digest reads
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GGUFModel:
    """A GGUF file whose every key and tensor has a place in a model that transformers computes."""

    file: Path
    """The file, or the first of several."""
    config: dict[str, Any]
    """config.json."""
    tensors: dict[str, StoredRows]
    """Hugging Face's names -> what the file stores."""
    dtype: torch.dtype
    """The dtype in which all tensors are read."""
    types: tuple[str, ...]
    """The ggml types of the tensors."""
    tokenizer: dict[str, str]
    """Name -> content of the files of the tokenizer; empty if it was not asked for."""

    def digest(self) -> str:
        """Identity of what is stored: configuration, tensor table, and a sample of every tensor's bytes."""
        parts = [json.dumps(self.config, sort_keys=True).encode()]
        for name, rows in sorted(self.tensors.items()):
            tensor = rows.tensor
            parts.append(f"{name} {tensor.type} {tensor.shape}".encode())
            last = tensor.start + max(0, tensor.nbytes - SAMPLE_BYTES)
            with tensor.file.open("rb") as handle:
                for offset in sorted({tensor.start, (tensor.start + last) // 2, last}):
                    handle.seek(offset)
                    parts.append(handle.read(min(SAMPLE_BYTES, tensor.start + tensor.nbytes - offset)))
        return digest_bytes(b"gguf", *parts)


def read_model(file: Path, dtype: torch.dtype | None = None, tokenizer: bool = True) -> GGUFModel:
    """Read everything but the weights of a GGUF file.

    Args:
        dtype: of the tensors; None: float32 or float16 where every matrix is stored so, else bfloat16.
        tokenizer: whether to read the tokenizer, which takes longer than the rest.

    No weight is read. Raises InputError for a damaged file, UnsupportedError for what transformers would compute
    differently, ResourceError without the package gguf where it is needed."""
    arrays = (TOKENS, TYPES, SCORES, MERGES) if tokenizer else (TOKENS, TYPES)
    header, tensors = with_parts(read_header(file, arrays), arrays)
    metadata, where = GGUFMetadata(header), str(file)
    names = tensor_names(metadata)
    layers = metadata.integer(".block_count")
    if layers > MAX_LAYERS:
        raise metadata.error(metadata.full(".block_count"), f"a number up to {MAX_LAYERS}")
    stored = {tensor.type for tensor in tensors}
    require_readable(stored, where)
    mapped = map_tensors(tensors, names, layers, head_size(metadata), where)
    if EMBEDDING not in mapped:
        raise InputError(f"{where}: no embedding; the file holds no whole model", file=file, tensor=EMBEDDING)
    vocab = mapped[EMBEDDING].tensor.shape[0]
    dtype = dtype or _dtype(tensors)
    divisors = next((read_vector(tensor, where) for tensor in tensors if tensor.name == DIVISORS), None)
    config = read_config(metadata, mapped.keys(), vocab, dtype, divisors)
    files = tokenizer_files(metadata, vocab) if tokenizer else {}
    return GGUFModel(file, config, mapped, dtype, tuple(sorted(stored)), files)


def first_part(file: Path) -> Path:
    """The first of the files over which a model is split, or the file itself."""
    match = _PART.fullmatch(file.name)
    return file.with_name(f"{match[1]}-{1:05}-of-{match[3]}.gguf") if match else file


def _dtype(tensors: list[GGUFTensor]) -> torch.dtype:
    """float32 or float16 where every matrix is stored so, else bfloat16."""
    matrices = {tensor.type for tensor in tensors if len(tensor.shape) > 1}
    dense = {"F32": torch.float32, "F64": torch.float32, "F16": torch.float16}
    return dense.get(next(iter(matrices)), torch.bfloat16) if len(matrices) == 1 else torch.bfloat16


def with_parts(header: GGUFHeader, arrays: Collection[str]) -> tuple[GGUFHeader, list[GGUFTensor]]:
    """The header of the first of the files over which a model is split, and the tensors of all of them. header: of one
    of them, or of the only one; arrays: keys of the metadata that are read in full.

    Raises InputError for files that are missing or do not belong together."""
    count = header.metadata.get("split.count", 0)
    if count in (0, 1):
        return header, header.tensors
    match = _PART.fullmatch(header.file.name)
    if type(count) is not int or not 1 < count <= MAX_PARTS or match is None or int(match[3]) != count:
        raise InputError(
            f"{header.file}: is one of {str(count)[:20]} files, which should be called NAME-00001-of-00003.gguf",
            file=header.file,
        )
    files = [header.file.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    parts = [header if file == header.file else read_header(file, arrays) for file in files]
    for number, part in enumerate(parts):
        if part.metadata.get("split.no") != number or part.metadata.get("split.count") != count:
            raise InputError(f"{part.file}: is not part {number + 1} of {count}; fetch it again", file=part.file)
    tensors = [tensor for part in parts for tensor in part.tensors]
    promised = parts[0].metadata.get("split.tensors.count", len(tensors))
    if len({tensor.name for tensor in tensors}) < len(tensors) or promised != len(tensors):
        raise InputError(
            f"{parts[0].file}: promises {str(promised)[:20]} tensors, its {count} files hold others; fetch them again",
            file=parts[0].file,
        )
    return parts[0], tensors
