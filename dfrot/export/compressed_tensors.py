"""The compressed-tensors layout: what vLLM, SGLang and transformers load. Integers are `pack-quantized`, FP4 stands in
dfrot/export/fp4_layout.py. 8-bit weights beside 8-bit activations are `int-quantized`, the one layout that INT8 kernels
read: `weight` int8 [N, K] and `weight_scale` [N, 1].

Per packed linear: `weight_packed` int32 [N, ceil(K b / 32)] (the same little-endian bit string along K as ours, in
words), `weight_scale` in the model's dtype [N, G], `weight_shape` int64 [2], and for asymmetric grids
`weight_zero_point` int32 [ceil(N b / 32), G], packed along N. The format is named in the group and globally: without
it the library infers an int8 container as soon as activations are quantized, which no INT4 kernel runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dfrot.checkpoint_writer import TensorPlan
from dfrot.export.fp4_layout import fp4_arguments, fp4_plans, fp4_tensors
from dfrot.export.source import ExportSource
from dfrot.quant.scheme import FULL, INTEGERS, QuantScheme
from dfrot.rotation.online import HadamardSpec
from dfrot_kernels.layouts import PackedWeight

WORD, INT8 = 32, "int-quantized"


class CompressedTensorsLayout:
    """A `FolderLayout`."""

    def plan(self, source: ExportSource) -> list[TensorPlan]:
        """The tensors of the result, in the checkpoint's order."""
        plans: list[TensorPlan] = []
        for tensor in source.tensors():
            name, module, kind, linear = tensor
            if linear is not None and linear.number_format != INTEGERS:
                plans += fp4_plans(source, tensor)
            elif linear is None:
                entry = source.checkpoint.entry(name)
                plans.append(TensorPlan(name, entry.dtype, entry.shape))
            elif kind == "weight_packed" and _elementwise(source):
                plans.append(TensorPlan(f"{module}.weight", torch.int8, (linear.rows, linear.cols)))
            elif kind == "weight_packed":
                words = -(-linear.cols * linear.w_bits // WORD)
                plans.append(TensorPlan(name, torch.int32, (linear.rows, words)))
                plans.append(TensorPlan(f"{module}.weight_shape", torch.int64, (2,)))
            elif kind == "weight_scale":
                plans.append(TensorPlan(name, source.dtype, (linear.rows, linear.groups)))
            else:
                shape = (-(-linear.rows * linear.w_bits // WORD), linear.groups)
                plans.append(TensorPlan(f"{module}.weight_zero_point", torch.int32, shape))
        if source.r4 is not None:
            block = source.r4.block
            plans += [TensorPlan(name, source.dtype, (block, block)) for name in _transform_names(source)]
        return plans

    def tensors(self, source: ExportSource) -> Iterator[tuple[str, Tensor]]:
        """Names and values, one linear in memory at a time."""
        for tensor in source.tensors():
            name, module, kind, linear = tensor
            if linear is not None and linear.number_format != INTEGERS:
                yield from fp4_tensors(source, tensor)
            elif linear is None:
                yield name, source.checkpoint.read(name)
            elif kind == "weight_packed":
                weight = source.packed_weight(module)
                if _elementwise(source):
                    yield f"{module}.weight", (weight.codes().short() - 2 ** (weight.bits - 1)).to(torch.int8)
                    yield f"{module}.weight_scale", _scale(source, weight, module)
                    continue
                yield name, _words(weight.packed)
                yield f"{module}.weight_shape", torch.tensor([linear.rows, linear.cols])
                yield f"{module}.weight_scale", _scale(source, weight, module)
                if weight.zero is not None:
                    yield f"{module}.weight_zero_point", _zero_points(weight)
        if source.r4 is not None:
            signs = sylvester(source.r4.block).to(source.dtype)
            for name in _transform_names(source):
                yield name, signs

    def config(self, source: ExportSource) -> dict[str, Any]:
        """`quantization_config` and, with an online R4, its `transform_config`."""
        scheme, storage = source.scheme, source.storage
        assert storage is not None
        arguments = _integer_arguments(scheme) if scheme.number_format == INTEGERS else fp4_arguments(scheme)
        head = source.arch.spec.head.name
        targets = ["Linear", f"re:.*{head}$"] if head in source.plans else ["Linear"]  # vLLM's head is no `Linear`
        group: dict[str, Any] = {"targets": targets, "format": storage.name, **arguments}
        entry: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "format": storage.name,
            "quantization_status": "compressed",
            "ignore": list(source.kept),
            "config_groups": {"group_0": group},
        }
        if source.r4 is not None:
            entry["transform_config"] = {"config_groups": {"R4": _online_transform(source.r4, source)}}
        return entry


def _elementwise(source: ExportSource) -> bool:
    """Whether every code has a byte of its own."""
    return source.storage is not None and source.storage.name == INT8


def _integer_arguments(scheme: QuantScheme) -> dict[str, dict[str, Any]]:
    """`weights` and, unless these stay in 16 bits, `input_activations` of a group of `config_groups`."""
    weights: dict[str, Any] = {
        "num_bits": scheme.w_bits,
        "type": "int",
        "symmetric": scheme.w_sym,
        "dynamic": False,
    }
    weights |= {"strategy": "group", "group_size": scheme.w_group} if scheme.w_group else {"strategy": "channel"}
    if scheme.a_bits == FULL:
        return {"weights": weights}
    activations = {
        "num_bits": scheme.a_bits,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }
    return {"weights": weights, "input_activations": activations}


def _words(packed: Tensor) -> Tensor:
    """A byte string per row uint8 [N, B] -> int32 [N, ceil(B / 4)], little-endian."""
    return functional.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)


def _scale(source: ExportSource, weight: PackedWeight, module: str) -> Tensor:
    """[N, G] in the model's dtype; the rounding to float16 is counted."""
    scale = weight.scale.float()
    if source.dtype == torch.float16:
        return source.rounding.to_float16(scale, module)
    return scale.to(source.dtype)


def _zero_points(weight: PackedWeight) -> Tensor:
    """Unsigned zero points packed along N, int32 [ceil(N b / 32), G]."""
    assert weight.zero is not None
    codes = weight.zero.t().contiguous()  # [G, N]
    bits: Tensor = torch.ops.dfq.pack(codes, weight.bits)
    return _words(bits).t().contiguous()


def _transform_names(source: ExportSource) -> list[str]:
    """The tensors that hold the online transform, one per linear that reads the MLP space."""
    names = [name for _, linear, name in source.arch.linears() if linear.reads == "mlp"]
    return [f"{name}.R4_input.weight" for name in names]


def sylvester(size: int) -> Tensor:
    """The Sylvester-Hadamard matrix float32 [size, size] with entries +-1: the format stores it unnormalised."""
    out = torch.ones(1, 1)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    while len(out) < size:
        out = torch.kron(two, out)
    return out


def _online_transform(spec: HadamardSpec, source: ExportSource) -> dict[str, Any]:
    """x H before down_proj; the inverse is in the weight already."""
    names = sorted({linear.name for _, linear, _ in source.arch.linears() if linear.reads == "mlp"})
    targets = [f"re:.*{name.rsplit('.', 1)[-1]}$" for name in names]
    apply = [
        {"targets": targets, "location": "input"},
        {"targets": targets, "location": "weight_input", "inverse": True},
    ]
    return {"type": "hadamard", "head_dim": spec.block, "precision": "torch.float32", "apply": apply}
