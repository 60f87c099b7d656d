"""The arithmetic that engines define for quantized activations, in plain torch: what a W4A4 or W4A8 export computes.

Symmetric, per token: scale = max|x| / (2^(b-1) - 1/2), codes rounded half to even and clamped. With the activation clip
`targets.engine_activation_clip` dfq's runtime scales by the same number, but through two roundings instead of one. The
largest value of a row lies exactly between two codes, so the last bit decides whether a negative one becomes -2^(b-1)
or -2^(b-1) + 1. Exports are therefore compared with this definition, and both perplexities are shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.export.source import open_source
from dfrot.export.targets import TARGETS
from dfrot.quant.scheme import FULL
from dfrot.runtime.load_foreign import dense_model


def round_tokens(x: Tensor, bits: int) -> Tensor:
    """Activations [..., features] rounded to `bits` bits, one scale per token."""
    half = 2 ** (bits - 1)
    scale = x.abs().amax(-1, keepdim=True) / (half - 0.5)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.clamp(torch.round(x / scale), -half, half - 1) * scale


def load_with_engine_arithmetic(folder: Path) -> Any:
    """The float32 transformers model of a packed checkpoint with symmetric activations: dequantized weights, and the
    engines' quantizer before every quantized linear. Raises DfqError as an export would."""
    source = open_source(folder, TARGETS["compressed-tensors"])
    source.scheme.require_integers("engines define an arithmetic of their own for")
    copied = [name for name in source.checkpoint.entries if name.rpartition(".")[0] not in source.plans]
    state = {name: source.checkpoint.read(name) for name in copied}
    state |= {f"{name}.weight": source.packed_weight(name).dequantize() for name in source.plans}
    model = dense_model(source.checkpoint.config, state)
    bits = source.scheme.a_bits

    def quantize(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (round_tokens(args[0], bits),)

    if source.scheme.a_bits != FULL:
        for name in source.plans:
            model.get_submodule(name).register_forward_pre_hook(quantize)
    return model
