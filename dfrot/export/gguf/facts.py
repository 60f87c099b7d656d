"""The facts of a GGUF file for `dfq inspect`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dfrot.inputs.gguf.header import read_header

QUANTIZED_TYPES = ("Q", "IQ", "TQ", "MXFP")  # how the names of quantized ggml types begin


def gguf_facts(file: Path) -> dict[str, Any]:
    """Size, types, tokenizer and origin of a GGUF file, from its header. Raises InputError for a damaged file."""
    header = read_header(file)
    counts: dict[str, int] = {}
    weights = quantized = quantized_bytes = nbytes = 0
    for tensor in header.tensors:
        elements = math.prod(tensor.shape)
        counts[tensor.type] = counts.get(tensor.type, 0) + 1
        weights, nbytes = weights + elements, nbytes + tensor.nbytes
        if tensor.type.startswith(QUANTIZED_TYPES):
            quantized, quantized_bytes = quantized + elements, quantized_bytes + tensor.nbytes
    metadata = header.metadata
    facts: dict[str, Any] = {
        "path": str(file),
        "kind": "GGUF",
        "model_type": str(metadata.get("general.architecture"))[:60],
        "parameters": weights,
        "bytes": file.stat().st_size,
        "bits_per_weight": round(8 * nbytes / max(weights, 1), 4),
        "weights": ", ".join(f"{count} x {name}" for name, count in sorted(counts.items())),
        "activations": "16 bits in the file; llama.cpp computes with 8-bit blocks",
        "kv": "chosen at run time",
        "tokenizer": f"{metadata.get('tokenizer.ggml.model')} {metadata.get('tokenizer.ggml.pre')}"[:80],
        "tokens": header.lengths.get("tokenizer.ggml.tokens"),
        "chat_template": "tokenizer.chat_template" in metadata,
        "loads_in": ["llama.cpp and its descendants"],
    }
    if quantized:
        facts["bits_per_quantized_weight"] = round(8 * quantized_bytes / quantized, 4)
    if isinstance(scheme := metadata.get("dfq.scheme"), str):
        facts["scheme"] = scheme[:40]
        facts["exported_from"] = str(metadata.get("dfq.source_digest"))[:64]
    return facts
