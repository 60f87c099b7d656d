"""Names, dtypes and shapes of a quantized checkpoint, and how results are stored in it.

Per quantized linear `NAME.weight_packed` uint8 [N, ceil(K bits / 8)], `NAME.weight_scale` bfloat16 [N, G] and,
asymmetric only, `NAME.weight_zero` uint8 [N, G]; everything else keeps its name and dtype. A simulated checkpoint
stores `NAME.weight` in float32 instead: a bfloat16 scale times an integer has up to 16 significant bits, which
neither bfloat16 nor float16 holds, and the simulated weights shall equal the packed ones bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dfrot.arch import BoundArch
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.quant.config import DfqConfig
from dfrot.quant.grid import Quantized
from dfrot.quant.keep import linear_names
from dfrot.quant.scheme import FULL


class CheckpointLayout:
    """The tensors of a quantized checkpoint, in the order of the source's architecture."""

    def __init__(self, checkpoint: Checkpoint, arch: BoundArch, config: DfqConfig) -> None:
        assert config.scheme is not None
        self.checkpoint, self.arch, self.config, self.scheme = checkpoint, arch, config, config.scheme
        rounds = self.scheme.w_bits != FULL
        self.quantized = [name for name in linear_names(arch) if rounds and name not in config.keep]
        self.source_nbytes = sum(entry.end - entry.start for entry in checkpoint.entries.values())

    def stored(self, name: str) -> str:
        """The module whose weight the source stores for linear `name`: the embedding for a tied head."""
        tied = name == self.arch.spec.head.name and self.arch.tied
        return self.arch.spec.embed if tied else name

    def plan(self) -> list[TensorPlan]:
        """Every tensor of the result."""
        plan: list[TensorPlan] = []
        quantized = set(self.quantized)
        names = list(self.arch.tensors())
        head = f"{self.arch.spec.head.name}.weight"
        if head not in names and self.arch.spec.head.name in quantized:
            names.append(head)
        names += [name for name in self.checkpoint.entries if self.arch.is_outside(name)]
        for name in names:
            module = name.removesuffix(".weight")
            plan += self._packed(module) if module in quantized else [self._dense(name)]
            if f"{module}.bias" in self.checkpoint and not self.arch.is_outside(name):
                plan.append(self._dense(f"{module}.bias"))
        return plan

    def _dense(self, name: str) -> TensorPlan:
        """A tensor that stays as it is."""
        entry = self.checkpoint.entry(name)
        return TensorPlan(name, entry.dtype, entry.shape)

    def _packed(self, module: str) -> list[TensorPlan]:
        """The tensors in place of the weight of linear `module`."""
        n, k = self.checkpoint.shape(f"{self.stored(module)}.weight")
        if self.config.fake:
            return [TensorPlan(f"{module}.weight", torch.float32, (n, k))]
        groups = -(-k // self.scheme.w_group) if self.scheme.w_group else 1
        tensors = [
            TensorPlan(f"{module}.weight_packed", torch.uint8, (n, -(-k * self.scheme.w_bits // 8))),
            TensorPlan(f"{module}.weight_scale", torch.bfloat16, (n, groups)),
        ]
        if not self.scheme.w_sym:
            tensors.append(TensorPlan(f"{module}.weight_zero", torch.uint8, (n, groups)))
        return tensors

    def copy_dense(self, checkpoint: Checkpoint, writer: SafetensorsWriter) -> None:
        """Copy all tensors that stay as they are, in row blocks."""
        for name in self._copied():
            writer.copy(checkpoint, name)

    def _copied(self) -> Iterator[str]:
        replaced = {f"{name}.weight" for name in self.quantized}
        return (tensor.name for tensor in self.plan() if tensor.name in self.checkpoint and tensor.name not in replaced)

    def write(self, writer: SafetensorsWriter, name: str, result: Quantized) -> None:
        """Store the result of linear `name`."""
        if self.config.fake:
            writer.write(f"{name}.weight", result.dequantize())
            return
        packed = result.packed()
        writer.write(f"{name}.weight_packed", packed.packed)
        writer.write(f"{name}.weight_scale", packed.scale)
        if packed.zero is not None:
            writer.write(f"{name}.weight_zero", packed.zero)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the result."""
        return sum(tensor.nbytes for tensor in self.plan())

    def sizes(self) -> dict[str, Any]:
        """Bytes before and after, and the bits of a quantized weight with its share of scales and zero points."""
        quantized = set(self.quantized)
        packed = [
            tensor for tensor in self.plan() if tensor.name.rsplit(".", 1)[0] in quantized and "bias" not in tensor.name
        ]
        count = 0
        for name in self.quantized:
            n, k = self.checkpoint.shape(f"{self.stored(name)}.weight")
            count += n * k
        bits = round(8 * sum(tensor.nbytes for tensor in packed) / count, 4) if count else FULL
        return {
            "source_bytes": self.source_nbytes,
            "bytes": self.nbytes,
            "quantized_weights": count,
            "bits_per_quantized_weight": bits,
            "linears_quantized": len(self.quantized),
        }
