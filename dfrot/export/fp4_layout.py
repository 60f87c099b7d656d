"""FP4 linears in compressed-tensors' layout: the tensors of a dfq checkpoint are those of the format already.

What is added is `input_global_scale` float32 [1], the constant scale of an NVFP4 input, which dfq keeps in config.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint_writer import TensorPlan
from dfrot.export.source import ExportSource, SourceTensor
from dfrot.quant.plan import packed_tensors
from dfrot.quant.scheme import FULL, NVFP4, QuantScheme

INPUT_SCALE = "input_global_scale"


def _scales_input(source: ExportSource, tensor: SourceTensor) -> bool:
    """Whether the constant scale of the linear's input follows this tensor."""
    scheme = source.scheme
    last = tensor.kind == "weight_global_scale"
    return last and scheme.number_format == NVFP4 and scheme.a_bits != FULL


def fp4_plans(source: ExportSource, tensor: SourceTensor) -> Iterator[TensorPlan]:
    """What is written in place of one tensor of an FP4 linear."""
    assert tensor.plan is not None
    dtype, shape = packed_tensors(tensor.plan)[tensor.name]
    yield TensorPlan(tensor.name, dtype, shape)
    if _scales_input(source, tensor):
        yield TensorPlan(f"{tensor.module}.{INPUT_SCALE}", torch.float32, (1,))


def fp4_tensors(source: ExportSource, tensor: SourceTensor) -> Iterator[tuple[str, Tensor]]:
    """Names and values, as `fp4_plans` has them. Raises InputError for damaged scales."""
    assert tensor.plan is not None
    if tensor.kind == "weight_packed":
        source.fp4_weight(tensor.module)
    yield tensor.name, source.checkpoint.read(tensor.name)
    if _scales_input(source, tensor):
        yield f"{tensor.module}.{INPUT_SCALE}", torch.tensor([tensor.plan.a_scale], dtype=torch.float32)


def fp4_arguments(scheme: QuantScheme) -> dict[str, dict[str, Any]]:
    """`weights` and, unless these stay in 16 bits, `input_activations` of a group of `config_groups`: the library's
    presets NVFP4, NVFP4A16, MXFP4 and MXFP4A16."""
    nvfp4 = scheme.number_format == NVFP4
    dtype = "torch.float8_e4m3fn" if nvfp4 else "torch.uint8"
    common: dict[str, Any] = {
        "num_bits": scheme.w_bits,
        "type": "float",
        "symmetric": True,
        "strategy": "tensor_group" if nvfp4 else "group",
        "group_size": scheme.w_group,
        "scale_dtype": dtype,
        "zp_dtype": dtype,
    }
    arguments = {"weights": {**common, "dynamic": False}}
    if scheme.a_bits != FULL:
        arguments["input_activations"] = {**common, "dynamic": "local" if nvfp4 else True}
        if nvfp4:
            arguments["input_activations"]["observer"] = "static_minmax"
    return arguments
