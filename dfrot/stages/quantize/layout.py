"""Names, dtypes and shapes of a quantized checkpoint, and how results are stored in it.

Per quantized linear, and for a quantized embedding, `NAME.weight_packed` uint8 [N, ceil(K bits / 8)],
`NAME.weight_scale` bfloat16 [N, G] and, asymmetric only, `NAME.weight_zero` uint8 [N, G]; where keys are shifted,
`key_shift` float32 [kv heads, head_dim] in attention modules; everything else keeps its name and dtype. FP4 has the
tensors of compressed-tensors (`packed_tensors`). A simulated checkpoint stores `NAME.weight` in float32 instead: a
bfloat16 scale times an integer has up to 16 significant bits, which neither bfloat16 nor float16 holds, and the
simulated weights shall equal the packed ones bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch, untie_config
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.quant.config import DfqConfig
from dfrot.quant.key_shift import key_shift_tensors
from dfrot.quant.plan import LinearPlan, packed_tensors, plan_linears
from dfrot.quant.rounding.grid import Quantized
from dfrot.quant.scheme import FULL


class CheckpointLayout:
    """The tensors of a quantized checkpoint, in the order of the source's architecture."""

    def __init__(self, checkpoint: Checkpoint, arch: BoundArch, config: DfqConfig) -> None:
        assert config.scheme is not None
        self.checkpoint, self.arch, self.config, self.scheme = checkpoint, arch, config, config.scheme
        untied = replace(arch, config=untie_config(arch.config))  # a quantized head has integers of its own
        self.quantized: dict[str, LinearPlan] = {
            name: plan for name, plan in plan_linears(untied, config).items() if plan.w_bits != FULL
        }
        self.source_nbytes = sum(entry.end - entry.start for entry in checkpoint.entries.values())

    def stored(self, name: str) -> str:
        """The module whose weight the source stores for linear `name`: the embedding for a tied head."""
        tied = name == self.arch.spec.head.name and self.arch.tied
        return self.arch.spec.embed if tied else name

    def plan(self) -> list[TensorPlan]:
        """Every tensor of the result."""
        plan: list[TensorPlan] = []
        names = list(self.arch.tensors())
        head = f"{self.arch.spec.head.name}.weight"
        if head not in names and self.arch.spec.head.name in self.quantized:
            names.append(head)
        names += [name for name in self.checkpoint.entries if self.arch.is_outside(name)]
        for name in names:
            module = name.removesuffix(".weight")
            plan += self._packed(module) if module in self.quantized else [self._dense(name)]
            if f"{module}.bias" in self.checkpoint and not self.arch.is_outside(name):
                plan.append(self._dense(f"{module}.bias"))
        shifts = key_shift_tensors(self.arch, self.config).items()
        return plan + [TensorPlan(name, torch.float32, shape) for name, shape in shifts]

    def _dense(self, name: str) -> TensorPlan:
        """A tensor that stays as it is."""
        entry = self.checkpoint.entry(name)
        return TensorPlan(name, entry.dtype, entry.shape)

    def _packed(self, module: str) -> list[TensorPlan]:
        """The tensors in place of the weight of `module`."""
        plan = self.quantized[module]
        if self.config.fake:
            return [TensorPlan(f"{module}.weight", torch.float32, (plan.rows, plan.cols))]
        return [TensorPlan(name, dtype, shape) for name, (dtype, shape) in packed_tensors(plan).items()]

    def copy_dense(self, checkpoint: Checkpoint, writer: SafetensorsWriter) -> None:
        """Copy all tensors that stay as they are, in row blocks."""
        for name in self._copied():
            writer.copy(checkpoint, name)

    def _copied(self) -> Iterator[str]:
        replaced = {f"{name}.weight" for name in self.quantized}
        return (tensor.name for tensor in self.plan() if tensor.name in self.checkpoint and tensor.name not in replaced)

    def write(self, writer: SafetensorsWriter, name: str, result: Quantized) -> None:
        """Store the result of linear `name`."""
        for tensor, value in self._values(name, result):
            writer.write(tensor, value)

    def write_rows(self, writer: SafetensorsWriter, name: str, begin: int, result: Quantized) -> None:
        """Store rows `begin` and following of module `name`."""
        for tensor, value in self._values(name, result):
            writer.write_rows(tensor, begin, value)

    def _values(self, name: str, result: Quantized) -> Iterator[tuple[str, Tensor]]:
        """The tensors that hold a result, or the rows of it."""
        if self.config.fake:
            yield f"{name}.weight", result.dequantize()
            return
        for kind, tensor in result.tensors().items():
            yield f"{name}.{kind}", tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the result."""
        return sum(tensor.nbytes for tensor in self.plan())

    def sizes(self) -> dict[str, Any]:
        """Bytes before and after, and the bits of a quantized weight with its share of scales and zero points."""
        packed = [
            tensor
            for tensor in self.plan()
            if tensor.name.rsplit(".", 1)[0] in self.quantized and "bias" not in tensor.name
        ]
        count = sum(plan.rows * plan.cols for plan in self.quantized.values())
        bits = round(8 * sum(tensor.nbytes for tensor in packed) / count, 4) if count else FULL
        return {
            "source_bytes": self.source_nbytes,
            "bytes": self.nbytes,
            "quantized_weights": count,
            "bits_per_quantized_weight": bits,
            "linears_quantized": sum(not plan.lookup for plan in self.quantized.values()),
        }
