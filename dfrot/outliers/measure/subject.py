"""The checkpoint under measurement, of any kind: 16-bit, rotated, packed or simulated, run block by block.

A quantized checkpoint runs as its simulated twin: weights dequantized as they are read, activations and KV cache
rounded on the way. So what is seen is what the quantized model itself computes, one block in memory at a time.
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
from dfrot.quant.config import DfqConfig
from dfrot.quant.plan import LinearPlan, plan_linears
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.load import check_folder
from dfrot_kernels.layouts import PackedWeight


class DequantizedCheckpoint(Checkpoint):
    """A packed checkpoint that reads as if its weights were dense."""

    def __init__(self, packed: Checkpoint, config: dict[str, Any], plans: dict[str, LinearPlan]) -> None:
        super().__init__(packed.path, config, packed.entries)
        self.plans = {f"{name}.weight": plan for name, plan in plans.items() if plan.packed}

    def __contains__(self, name: str) -> bool:
        return name in self.plans or super().__contains__(name)

    def shape(self, name: str) -> tuple[int, ...]:
        plan = self.plans.get(name)
        return (plan.rows, plan.cols) if plan else super().shape(name)

    def read(self, name: str) -> Tensor:
        plan = self.plans.get(name)
        if plan is None:
            return super().read(name)
        stem = name.removesuffix(".weight")
        zero = None if plan.w_sym else super().read(f"{stem}.weight_zero")
        packed, scale = super().read(f"{stem}.weight_packed"), super().read(f"{stem}.weight_scale")
        shape = (plan.rows, plan.cols)
        return PackedWeight(packed, scale, zero, plan.w_bits, plan.group, shape).dequantize(torch.float32)

    def read_rows(self, name: str, begin: int, end: int) -> Tensor:
        return self.read(name)[begin:end] if name in self.plans else super().read_rows(name, begin, end)


class Subject:
    """checkpoint, arch, config (None for an ordinary checkpoint) and the runner that computes its blocks."""

    def __init__(self, path: Path) -> None:
        opened, config = check_folder(path)
        where = str(opened.path / "config.json")
        arch: BoundArch = describe(opened.config, where)
        if fused := [one.name for one in arch.spec.linears if one.parts]:
            raise UnsupportedError(
                f"{where}: {fused[0]} is several linears in one, which dfq outliers cannot tell apart"
            )
        if arch.spec.experts is not None:
            raise UnsupportedError(
                f"{where}: is a mixture of experts, each of which sees other tokens; dfq outliers measures dense models"
            )
        if reason := arch.spec.refuses("residual"):
            raise UnsupportedError(f"{where}: cannot be measured block by block: {reason}")
        self.source, self.arch, self.config = opened, arch, config
        self.scheme = config.scheme if config is not None else None
        self.checkpoint = opened
        if config is not None and config.scheme is not None:
            plain = {
                **opened.config,
                "quantization_config": DfqConfig(online=config.online, resets=config.resets).to_dict(),
            }
            self.checkpoint = DequantizedCheckpoint(opened, plain, plan_linears(arch, config, where))
        self.runner = BlockRunner(self.checkpoint, arch)

    @property
    def kind(self) -> str:
        """original, rotated, or the name of the scheme."""
        if self.scheme is not None:
            return self.scheme.name
        return "rotated" if self.rotated else "original"

    @property
    def rotated(self) -> bool:
        """Whether dfq rotated it: then the residual stream has no channels of its own any more."""
        return (self.source.path / "rotation.safetensors").is_file() or bool(self.config and self.config.online)

    def block(self, layer: int) -> nn.Module:
        """Block `layer` as this checkpoint runs it; drop the previous one first."""
        block = self.runner.block(layer)
        if self.config is not None and self.scheme is not None:
            for tap in self.arch.taps():
                names = [one.name for one in tap.linears if self.arch.full(layer, one.name) not in self.config.keep]
                if names:
                    clip = self.config.a_clips.get(self.arch.full(layer, names[0]), self.scheme.a_clip)
                    quantize_activations(block, tap, names, self.scheme, clip, self.config.sink_tokens)
        return block

    def cache(self) -> SimulatedKV | None:
        """What rounds keys and values, if the checkpoint does."""
        if self.config is None or self.scheme is None:
            return None
        return SimulatedKV.of(self.scheme, self.config.online.r3, self.config.sink_tokens)
