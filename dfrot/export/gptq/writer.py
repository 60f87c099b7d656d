"""The GPTQ layout that vLLM, SGLang and GPTQModel read.

Per linear `qweight` int32 [K b / 32, N] (element j of word i is input row i 32/b + j), `scales` float16 [G, N],
`qzeros` int32 [G, N b / 32] packed along N, `g_idx` int32 [K]. Version 1 stores zero - 1, which cannot say zero = 0:
asymmetric grids are written as version 2, which stores the zero itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint_writer import TensorPlan
from dfrot.export.source import ExportSource
from dfrot.quant.plan import LinearPlan

WORD = 32


def _pack_last(codes: Tensor, bits: int) -> Tensor:
    """codes uint8 [R, C] -> int32 [R, C bits / 32], first element in the low bits."""
    packed: Tensor = torch.ops.dfq.pack(codes.contiguous(), bits)
    return packed.contiguous().view(torch.int32)


def plan(source: ExportSource) -> list[TensorPlan]:
    """The tensors of the result, in the checkpoint's order."""
    found = []
    for name, module, kind, one in source.parts():
        if one is None:
            entry = source.checkpoint.entry(name)
            found.append(TensorPlan(name, entry.dtype, entry.shape))
        elif kind == "weight_packed":
            n, k, bits = one.rows, one.cols, one.w_bits
            found.append(TensorPlan(f"{module}.qweight", torch.int32, (k * bits // WORD, n)))
            found.append(TensorPlan(f"{module}.qzeros", torch.int32, (one.groups, n * bits // WORD)))
            found.append(TensorPlan(f"{module}.scales", torch.float16, (one.groups, n)))
            found.append(TensorPlan(f"{module}.g_idx", torch.int32, (k,)))
    return found


def tensors(source: ExportSource) -> Iterator[tuple[str, Tensor]]:
    """Their values, one linear in memory at a time."""
    for name, module, kind, one in source.parts():
        if one is None:
            yield name, source.checkpoint.read(name)
        elif kind == "weight_packed":
            yield from ((f"{module}.{part}", value) for part, value in _linear(source, module, one))


def _linear(source: ExportSource, module: str, one: LinearPlan) -> Iterator[tuple[str, Tensor]]:
    weight, bits = source.weight(module), one.w_bits
    # words along K, stored transposed: the same words as ours
    yield "qweight", _pack_last(weight.codes(), bits).t().contiguous()
    zero = weight.zero if weight.zero is not None else torch.full((one.rows, one.groups), 2 ** (bits - 1) - 1)
    yield "qzeros", _pack_last(zero.to(torch.uint8).t(), bits)
    yield "scales", source.rounding.half(weight.scale.float(), module).t().contiguous()
    yield "g_idx", (torch.arange(one.cols) // (one.group or one.cols)).to(torch.int32)


def config(source: ExportSource) -> dict[str, Any]:
    """`quantization_config`. `desc_act` false: groups are consecutive columns. No key `rotation`: GPTQModel would
    rotate activations for it, and everything is fused here."""
    scheme = source.scheme
    version = "gptq" if scheme.w_sym else "gptq_v2"
    return {
        "quant_method": "gptq",
        "bits": scheme.w_bits,
        "group_size": scheme.w_group or -1,
        "desc_act": False,
        "sym": scheme.w_sym,
        "lm_head": False,
        "checkpoint_format": version,
        "format": version,
        "pack_dtype": "int32",
    }
