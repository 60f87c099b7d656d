"""Reading the GPTQ layout in plain torch, from its description: no code is shared with our writer.

The arithmetic is that of the public kernels: unpack by shift and mask, add 1 to the zeros of version 1, pick scale
and zero of each input row by `g_idx`, `w = scale (q - zero)`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError


def dense_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a GPTQ checkpoint by name, its linears as dense float32 weights [N, K].

    Raises InputError for a folder of another format."""
    checkpoint = Checkpoint.open(folder)
    entry = checkpoint.config.get("quantization_config")
    if not isinstance(entry, dict) or entry.get("quant_method") != "gptq":
        raise InputError(f"{folder}: is not a GPTQ checkpoint", file=folder)
    bits, offset = int(entry["bits"]), 0 if entry.get("checkpoint_format") == "gptq_v2" else 1
    tensors = {}
    for name in checkpoint.entries:
        module, _, kind = name.rpartition(".")
        if kind == "qweight":
            codes = _unpack(checkpoint.read(name), bits, 0)  # [K, N]
            zeros = _unpack(checkpoint.read(f"{module}.qzeros"), bits, 1) + offset  # [G, N]
            groups = checkpoint.read(f"{module}.g_idx").long()
            scales = checkpoint.read(f"{module}.scales").float()
            tensors[f"{module}.weight"] = (scales[groups] * (codes - zeros[groups])).t().contiguous()
        elif kind not in ("qzeros", "scales", "g_idx"):
            tensors[name] = checkpoint.read(name)
    return tensors


def _unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    """int32 words -> integers, 32 / bits per word along `dim`, lowest bits first."""
    shifts = torch.arange(0, 32, bits)
    wide = (words.to(torch.int64) & 0xFFFFFFFF).unsqueeze(dim + 1)
    shape = [1] * wide.dim()
    shape[dim + 1] = len(shifts)
    out: Tensor = (wide >> shifts.view(shape)) & (2**bits - 1)
    return out.flatten(dim, dim + 1)
