"""A dfq checkpoint of a given shape with random weights, written directly in packed form without a 16-bit model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch, describe
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.files import write_json
from dfrot.quant.config import DfqConfig
from dfrot.quant.plan import LinearPlan, packed_tensors, plan_linears
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.rotation.hadamard import hadamard_plan
from dfrot.rotation.online import OnlineRotations


def random_checkpoint(
    folder: Path,
    config: dict[str, Any],
    scheme: str,
    seed: int = 0,
    keep_head: bool = False,
    tables: tuple[str, str] = ("16", "16"),
) -> Path:
    """Write a checkpoint into `folder`; returns it.

    config: of the model, Hugging Face's. scheme: of every linear, the head included unless `keep_head`. tables: schemes
    of the embedding and, where it has one of its own, of the head. Online rotations are declared where `dfq quantize`
    needs them. Scales keep activations near unit size, so that nothing overflows."""
    arch = describe(config)
    embed, head = map(TableScheme.parse, tables)
    entry = replace(dfq_config(arch, QuantScheme.parse(scheme), keep_head), embed=embed, head=head)
    plans = plan_linears(arch, entry)
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, shape in {**arch.tensors(), **arch.biases()}.items():
        plan = plans.get(name.removesuffix(".weight"))
        if plan is not None and plan.packed:
            tensors.update(packed_tensors(plan))
        else:
            tensors[name] = (torch.bfloat16, shape)
    folder.mkdir(parents=True, exist_ok=True)
    writer = SafetensorsWriter(folder, [TensorPlan(name, dtype, shape) for name, (dtype, shape) in tensors.items()])
    generator = torch.Generator().manual_seed(seed)
    for name, (dtype, shape) in tensors.items():
        writer.write(name, _random_tensor(name, dtype, shape, plans, generator))
    write_json(folder / "config.json", {**config, "quantization_config": entry.to_dict()})
    return folder


def dfq_config(arch: BoundArch, scheme: QuantScheme, keep_head: bool = False) -> DfqConfig:
    """The config that `dfq quantize` writes: R3 with a quantized cache, R4 with quantized activations."""
    scheme.require_integers("random models have")
    online = OnlineRotations(
        r3=hadamard_plan(arch.head_dim) if scheme.kv_bits < 16 else None,
        r4=hadamard_plan(arch.intermediate) if scheme.a_bits < 16 else None,
    )
    keep = (arch.spec.head.name,) if arch.tied or keep_head else ()
    return DfqConfig(scheme=scheme, online=online, keep=keep)


def _random_tensor(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], plans: dict[str, LinearPlan], generator: torch.Generator
) -> Tensor:
    if dtype == torch.uint8:
        plan = plans[name.rpartition(".")[0]]
        top = 256 if name.endswith("_packed") else 2**plan.w_bits
        return torch.randint(0, top, shape, dtype=torch.uint8, generator=generator)
    if name.endswith(".weight_second"):
        return torch.arange(shape[0], dtype=dtype)
    if name.endswith(".weight_scale"):
        plan = plans[name.rpartition(".")[0]]
        deviation = (2**plan.w_bits - 1) / 12**0.5  # of uniform codes
        return torch.full(shape, plan.cols**-0.5 / deviation, dtype=torch.bfloat16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, shape[-1] ** -0.5, generator=generator)
