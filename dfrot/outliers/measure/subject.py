"""The checkpoint that is measured, run block by block: 16-bit, rotated, packed or simulated.

A quantized checkpoint runs simulated: weights are dequantized when they are read, activations and KV cache are rounded
on the way. What is measured is what the quantized model computes, with one block in memory at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, describe
from dfrot.calib.simulate import SimulatedKV, quantize_activations
from dfrot.checkpoint import Checkpoint
from dfrot.errors import UnsupportedError
from dfrot.inputs import DenseTensor, DequantizedCheckpoint
from dfrot.inputs.dense_view import stored_tensor
from dfrot.quant.config import DfqConfig
from dfrot.quant.key_shift import TENSOR as KEY_SHIFT
from dfrot.quant.key_shift import key_shift_name
from dfrot.quant.plan import LinearPlan, plan_linears
from dfrot.quant.second_rows import check_second
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.load import check_folder
from dfrot_kernels.layouts import PackedWeight

PARTS = ("weight_packed", "weight_scale", "weight_zero", "weight_second")


def dequantized(packed: Checkpoint, config: dict[str, Any], plans: dict[str, LinearPlan]) -> DequantizedCheckpoint:
    """A packed checkpoint whose weights are dequantized, to float32 [N, K], when they are read.

    config: of the dense model, which has no key shifts; plans: linears by full name."""
    packed_plans = {name: plan for name, plan in plans.items() if plan.packed}
    parts = {f"{name}.{part}" for name in packed_plans for part in PARTS}
    kept = (name for name in packed.entries if name not in parts and not name.endswith(f".{KEY_SHIFT}"))
    tensors = [stored_tensor(packed, name) for name in kept]
    tensors += [_dense_linear(packed, name, plan) for name, plan in packed_plans.items()]
    return DequantizedCheckpoint(packed.path, config, tensors, packed.digest, "dfq, packed", torch.float32)


def _dense_linear(packed: Checkpoint, name: str, plan: LinearPlan) -> DenseTensor:
    """The weight of a packed linear."""

    def stored(begin: int, end: int) -> Tensor:
        def read(part: str) -> Tensor:
            return packed.read_rows(f"{name}.{part}", begin, end)

        zero = None if plan.w_sym else read("weight_zero")
        shape = (end - begin, plan.cols)
        codes, scale = read("weight_packed"), read("weight_scale")
        return PackedWeight(codes, scale, zero, plan.w_bits, plan.group, shape).dequantize(torch.float32)

    def rows(begin: int, end: int) -> Tensor:
        weight = stored(begin, end)
        if plan.second_rows:
            second = packed.read(f"{name}.weight_second")
            check_second(second, plan.rows, name)
            first, last = torch.searchsorted(second, torch.tensor([begin, end], dtype=second.dtype)).tolist()
            if first < last:
                extra = stored(plan.rows + first, plan.rows + last)
                weight.index_add_(0, second[first:last].long() - begin, extra)
        return weight

    file = packed.entry(f"{name}.weight_packed").file
    return DenseTensor(f"{name}.weight", torch.float32, (plan.rows, plan.cols), file, rows)


class Subject:
    """A checkpoint and the runner that computes its blocks.

    Attributes: `source`, the checkpoint as stored; `checkpoint`, the same with dense weights; `arch`; `config`, dfq's
    entry in config.json or None; `scheme`, of a quantized checkpoint or None; `runner`."""

    def __init__(self, path: Path) -> None:
        """Open the folder `path`, reading no weight but what `check_folder` reads.

        Raises UnsupportedError for architectures that cannot be measured block by block."""
        opened, config = check_folder(path)
        where = str(opened.path / "config.json")
        arch: BoundArch = describe(opened.config, where)
        if fused := [linear.name for linear in arch.spec.linears if linear.parts]:
            raise UnsupportedError(f"{where}: {fused[0]} fuses several linears, which dfq outliers cannot tell apart")
        if arch.spec.experts is not None:
            raise UnsupportedError(
                f"{where}: is a mixture of experts, each of which gets other tokens; dfq outliers measures dense models"
            )
        if reason := arch.spec.refuses("residual"):
            raise UnsupportedError(f"{where}: cannot be measured block by block: {reason}")
        self.source, self.arch, self.config = opened, arch, config
        self.scheme = config.scheme if config is not None else None
        self.checkpoint = opened
        if config is not None and config.scheme is not None:
            config.scheme.require_integers("dfq outliers measures")
            plain = {
                **opened.config,
                "quantization_config": DfqConfig(online=config.online, resets=config.resets).to_dict(),
            }
            self.checkpoint = dequantized(opened, plain, plan_linears(arch, config, where))
        self.runner = BlockRunner(self.checkpoint, arch)

    @property
    def kind(self) -> str:
        """`original`, `rotated`, or the name of the scheme."""
        if self.scheme is not None:
            return self.scheme.name
        return "rotated" if self.rotated else "original"

    @property
    def rotated(self) -> bool:
        """Whether dfq rotated it: single channels of the residual stream then have no meaning."""
        return (self.source.path / "rotation.safetensors").is_file() or bool(self.config and self.config.online)

    def block(self, layer: int) -> nn.Module:
        """Block `layer` as this checkpoint runs it. Drop the previous block first, to hold one at a time."""
        block = self.runner.block(layer)
        if self.config is not None and self.scheme is not None:
            for tap in self.arch.taps():
                keep = self.config.keep
                names = [linear.name for linear in tap.linears if self.arch.full(layer, linear.name) not in keep]
                if names:
                    scheme = self.config.activations_of(self.arch.full(layer, names[0]))
                    quantize_activations(block, tap, names, scheme, self.config.sink_tokens)
        return block

    def cache(self, layer: int) -> SimulatedKV | None:
        """A new cache that rounds the keys and values of a layer; None where the checkpoint does not."""
        if self.config is None or self.scheme is None:
            return None
        shift = self.source.read(key_shift_name(self.arch, layer)) if self.config.shifts_keys else None
        return SimulatedKV.of(self.scheme, self.config.online.r3, self.config.sink_tokens, shift)
