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
from dfrot.quant.config import DfqConfig
from dfrot.quant.plan import LinearPlan, plan_linears
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.load import check_folder
from dfrot_kernels.layouts import PackedWeight


class DequantizedCheckpoint(Checkpoint):
    """A packed checkpoint whose weights are dequantized when they are read."""

    def __init__(self, packed: Checkpoint, config: dict[str, Any], plans: dict[str, LinearPlan]) -> None:
        """config: of the dense model; plans: linears by full name."""
        super().__init__(packed.path, config, packed.entries)
        self.plans = {f"{name}.weight": plan for name, plan in plans.items() if plan.packed}

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor, dense weights of packed linears included."""
        return name in self.plans or super().__contains__(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        plan = self.plans.get(name)
        return (plan.rows, plan.cols) if plan else super().shape(name)

    def read(self, name: str) -> Tensor:
        """A tensor; packed weights as float32 [N, K]."""
        plan = self.plans.get(name)
        return super().read(name) if plan is None else self.read_rows(name, 0, plan.rows)

    def read_rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows begin..end of a tensor; of packed weights as float32."""
        plan, read = self.plans.get(name), super().read_rows
        if plan is None:
            return read(name, begin, end)
        module = name.removesuffix(".weight")
        zero = None if plan.w_sym else read(f"{module}.weight_zero", begin, end)
        packed, scale = (read(f"{module}.weight_{part}", begin, end) for part in ("packed", "scale"))
        shape = (len(packed), plan.cols)
        return PackedWeight(packed, scale, zero, plan.w_bits, plan.group, shape).dequantize(torch.float32)


class Subject:
    """A checkpoint and the runner that computes its blocks.

    Attributes: `source`, the checkpoint as stored; `checkpoint`, the same with dense weights; `arch`; `config`, dfq's
    entry in config.json or None; `scheme`, of a quantized checkpoint or None; `runner`."""

    def __init__(self, path: Path) -> None:
        """Open the folder `path`, reading no weight.

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
            plain = {
                **opened.config,
                "quantization_config": DfqConfig(online=config.online, resets=config.resets).to_dict(),
            }
            self.checkpoint = DequantizedCheckpoint(opened, plain, plan_linears(arch, config, where))
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
                    clip = self.config.a_clips.get(self.arch.full(layer, names[0]), self.scheme.a_clip)
                    quantize_activations(block, tap, names, self.scheme, clip, self.config.sink_tokens)
        return block

    def cache(self) -> SimulatedKV | None:
        """A new cache that rounds keys and values; None where the checkpoint does not."""
        if self.config is None or self.scheme is None:
            return None
        return SimulatedKV.of(self.scheme, self.config.online.r3, self.config.sink_tokens)
