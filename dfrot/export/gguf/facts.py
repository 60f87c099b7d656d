"""The facts of a GGUF file for `dfq inspect`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dfrot.arch import described
from dfrot.errors import DfqError
from dfrot.inputs.gguf.header import TYPES, read_header
from dfrot.inputs.gguf.model import read_model, with_parts
from dfrot.inputs.gguf.open import gguf_view

QUANTIZED_TYPES = {name for name, elements, _ in TYPES.values() if elements > 1}


def gguf_facts(file: Path) -> dict[str, Any]:
    """Size, types, tokenizer and origin of a GGUF model, in one file or several, and whether dfq reads it.

    Raises InputError for a damaged file."""
    header, tensors = with_parts(read_header(file), ())
    counts: dict[str, int] = {}
    weights = quantized = quantized_bytes = nbytes = 0
    for tensor in tensors:
        elements = math.prod(tensor.shape)
        counts[tensor.type] = counts.get(tensor.type, 0) + 1
        weights, nbytes = weights + elements, nbytes + tensor.nbytes
        if tensor.type in QUANTIZED_TYPES:
            quantized, quantized_bytes = quantized + elements, quantized_bytes + tensor.nbytes
    metadata = header.metadata
    facts: dict[str, Any] = {
        "path": str(file),
        "kind": "GGUF",
        "model_type": str(metadata.get("general.architecture"))[:60],
        "parameters": weights,
        "bytes": sum(part.stat().st_size for part in {file, *(tensor.file for tensor in tensors)}),
        "bits_per_weight": round(8 * nbytes / max(weights, 1), 4),
        "weights": ", ".join(f"{count} x {name}" for name, count in sorted(counts.items())),
        "activations": "16 bits in the file; llama.cpp computes with 8-bit blocks",
        "kv": "chosen at run time",
        "tokenizer": f"{metadata.get('tokenizer.ggml.model')} {metadata.get('tokenizer.ggml.pre')}"[:80],
        "tokens": header.lengths.get("tokenizer.ggml.tokens"),
        "chat_template": "tokenizer.chat_template" in metadata,
        "loads_in": ["llama.cpp and its descendants"],
        "read_by_dfq": _read_by_dfq(file),
    }
    if quantized:
        facts["bits_per_quantized_weight"] = round(8 * quantized_bytes / quantized, 4)
    if isinstance(scheme := metadata.get("dfq.scheme"), str):
        facts["scheme"] = scheme[:40]
        facts["exported_from"] = str(metadata.get("dfq.source_digest"))[:64]
    return facts


def _read_by_dfq(file: Path) -> str:
    """Whether the stages read a GGUF file, in words."""
    try:
        model = read_model(file)
        described(gguf_view(model, file.parent))
    except DfqError as error:
        return "no: " + str(error).removeprefix(f"{file}: ")
    return f"yes, dequantized to {str(model.dtype).removeprefix('torch.')}"
