"""Bits per weight of the parts of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dfrot.inputs.gguf.header import GGUFTensor, read_header

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def gguf_bits(file: Path) -> dict[str, float]:
    """Bits per weight, scales included: `weights` (mean over the matrices of blocks), `embedding`, `head` (the
    embedding's where they are tied)."""
    tensors = {tensor.name: tensor for tensor in read_header(file).tensors}
    matrices = [tensor for name, tensor in tensors.items() if name.startswith("blk.") and len(tensor.shape) > 1]
    bits = {"weights": _bits(matrices), "embedding": _bits([tensors[EMBEDDING]])}
    return {**bits, "head": _bits([tensors.get(HEAD, tensors[EMBEDDING])])}


def _bits(tensors: Sequence[GGUFTensor]) -> float:
    values = sum(math.prod(tensor.shape) for tensor in tensors)
    return round(8 * sum(tensor.nbytes for tensor in tensors) / values, 2)
