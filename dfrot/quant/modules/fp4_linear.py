"""The linear of a packed FP4 model, computed exactly: no processor that dfq has kernels for multiplies FP4.

The weight is decoded once, after loading, to float32 (4.5 bytes per weight in memory); activations are rounded to FP4
values on every call, and products are sums in float32. The state dict stays packed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.quant.modules.checked import register_packed_weight
from dfrot.quant.modules.rotated_linear import RotatedLinear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rounding.fp4_grid import Fp4Weight


class Fp4Linear(RotatedLinear):
    """A linear whose weight is stored as FP4 codes [N, K / 2] with scales, under the names of compressed-tensors."""

    weight_packed: Tensor
    weight_scale: Tensor
    weight_global_scale: Tensor | None
    decoded: Tensor | None

    def __init__(self, plan: LinearPlan, bias: bool, dtype: torch.dtype) -> None:
        """Tensors without values, for loading. bias: whether there is one, of this dtype."""
        super().__init__(plan, bias, dtype)
        self.register_buffer("weight_global_scale", None)
        register_packed_weight(self, plan)
        self.register_buffer("decoded", None, persistent=False)

    def stored_weight(self) -> Fp4Weight:
        """The stored weight."""
        return Fp4Weight(self.weight_packed, self.weight_scale, self.weight_global_scale)

    def dequantized(self) -> Tensor:
        """The weight as float32 [N, K]."""
        return self.stored_weight().dequantize()

    @property
    def qweight(self) -> Tensor:
        """The codes uint8 [N, K / 2]: the name under which peft looks for a quantized linear's device."""
        return self.weight_packed

    def prepare(self, name: str) -> None:
        """Check the scales and decode the weight. Called once, after loading. Raises InputError for damaged scales,
        naming the tensor of module `name`."""
        super().prepare(name)
        self.stored_weight().check(name)
        self.decoded = self.dequantized()

    def _apply(self, fn: Any, recurse: bool = True) -> Fp4Linear:
        """`model.to(dtype)` is meant for the model's own floats: scales and the decoded weight keep their dtypes."""
        before = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(moved.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] of its dtype."""
        assert self.decoded is not None
        return self.dense_product(x, self.decoded)
