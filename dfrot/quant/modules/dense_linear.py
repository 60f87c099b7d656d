"""Linears with a dense weight that rotate or quantize their input, among them the simulated twin of a packed one.

The twin multiplies the integer codes of the activations (as floats) with the dense weight and applies the token's scale
afterwards. With one weight scale per row, every partial sum is an integer times that scale and exact in float32, so
packed and simulated models agree bit for bit. That matters: a difference in the last bit flips 4-bit codes further on,
and two runs that should be equal drift apart by tenths of a percent in perplexity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.quant.modules.embedding import QuantEmbedding
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.modules.rotated_linear import RotatedLinear
from dfrot.quant.plan import LinearPlan


class DenseLinear(RotatedLinear):
    """A linear with a dense weight [N, K].

    It serves rotated 16-bit checkpoints (R4 only: then it is an ordinary matmul in the model's dtype), w16 schemes,
    and simulated checkpoints, whose weights lie on the integer grid.
    """

    def __init__(self, plan: LinearPlan, bias: bool, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
        """dtype: of the bias. weight_dtype: of the weight, as it is stored."""
        super().__init__(plan, bias, dtype)
        self.weight = nn.Parameter(torch.empty(plan.rows, plan.cols, dtype=weight_dtype), requires_grad=False)

    @classmethod
    def twin(cls, module: QuantLinear) -> DenseLinear:
        """The simulated twin of a packed linear, in float32, with the same state."""
        dtype = module.bias.dtype if module.bias is not None else torch.float32
        with torch.device("meta"):
            dense = cls(module.plan, False, dtype, torch.float32)
        dense.weight = nn.Parameter(module.dequantized(), requires_grad=False)
        dense.bias, dense.hadamard_base, dense.sinks = module.bias, module.hadamard_base, module.sinks
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] of its dtype."""
        return self.dense_product(x, self.weight)


def simulate(model: Any) -> None:
    """Replace every packed linear of a loaded model by its simulated twin, and a packed embedding by a dense one."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            model.set_submodule(name, DenseLinear.twin(module).eval())
        elif isinstance(module, QuantEmbedding):
            model.set_submodule(name, module.dense().eval())
