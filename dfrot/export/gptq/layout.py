"""The GPTQ layout that vLLM, SGLang and GPTQModel read.

Per linear: `qweight` int32 [K b / 32, N] (element j of word i is input row i 32/b + j), `scales` float16 [G, N],
`qzeros` int32 [G, N b / 32] packed along N, `g_idx` int32 [K]. Version 1 stores zero - 1, which cannot encode zero = 0:
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


class GPTQLayout:
    """A `FolderLayout`."""

    def plan(self, source: ExportSource) -> list[TensorPlan]:
        """The tensors of the result, in the checkpoint's order."""
        plans = []
        for name, module, kind, linear in source.tensors():
            if linear is None:
                entry = source.checkpoint.entry(name)
                plans.append(TensorPlan(name, entry.dtype, entry.shape))
            elif kind == "weight_packed":
                n, k, bits = linear.rows, linear.cols, linear.w_bits
                plans.append(TensorPlan(f"{module}.qweight", torch.int32, (k * bits // WORD, n)))
                plans.append(TensorPlan(f"{module}.qzeros", torch.int32, (linear.groups, n * bits // WORD)))
                plans.append(TensorPlan(f"{module}.scales", torch.float16, (linear.groups, n)))
                plans.append(TensorPlan(f"{module}.g_idx", torch.int32, (k,)))
        return plans

    def tensors(self, source: ExportSource) -> Iterator[tuple[str, Tensor]]:
        """Names and values, one linear in memory at a time."""
        for name, module, kind, linear in source.tensors():
            if linear is None:
                yield name, source.checkpoint.read(name)
            elif kind == "weight_packed":
                yield from ((f"{module}.{part}", value) for part, value in _linear_tensors(source, module, linear))

    def config(self, source: ExportSource) -> dict[str, Any]:
        """`quantization_config`. `desc_act` false: groups are consecutive columns. No key `rotation`: GPTQModel would
        rotate activations for it, and here every rotation is fused."""
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


def _linear_tensors(source: ExportSource, module: str, linear: LinearPlan) -> Iterator[tuple[str, Tensor]]:
    """The four tensors of a linear, by last part of their names."""
    weight, bits = source.packed_weight(module), linear.w_bits
    # words along K, stored transposed: the same words as ours
    yield "qweight", _pack_last(weight.codes(), bits).t().contiguous()
    zero = weight.zero if weight.zero is not None else torch.full((linear.rows, linear.groups), 2 ** (bits - 1) - 1)
    yield "qzeros", _pack_last(zero.to(torch.uint8).t(), bits)
    yield "scales", source.rounding.to_float16(weight.scale.float(), module).t().contiguous()
    yield "g_idx", (torch.arange(linear.cols) // (linear.group or linear.cols)).to(torch.int32)


def _pack_last(codes: Tensor, bits: int) -> Tensor:
    """codes uint8 [R, C] -> int32 [R, C bits / 32], first element in the low bits."""
    packed: Tensor = torch.ops.dfq.pack(codes.contiguous(), bits)
    return packed.contiguous().view(torch.int32)
