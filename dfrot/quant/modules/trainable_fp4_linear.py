"""A packed FP4 linear that gradients pass through. Nothing of it learns: a step of its 8-bit scales is larger than what
tuning changes. The gains of norms in front of it do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.quant.modules.fp4_linear import Fp4Linear
from dfrot.quant.modules.trainable_linear import gradient_dtype


class _Fp4Product(torch.autograd.Function):
    """rows [M, K] through the linear -> float32 [M, N], activations rounded as the plan says; the gradient passes the
    rounding straight through, in a product of bfloat16 where the processor has them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, linear: Fp4Linear) -> Tensor:
        ctx.linear = linear
        assert linear.decoded is not None
        return linear.product_beside_sinks(rows, linear.decoded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        low = gradient.to(gradient_dtype())
        return (low @ ctx.linear.decoded.to(low.dtype)).float(), None


class TrainableFp4Linear(nn.Module):
    """Replaces an Fp4Linear while gains learn: the output is the one that will be served."""

    def __init__(self, module: Fp4Linear) -> None:
        """module: of a model in float32."""
        super().__init__()
        self.module = module.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> float32 [..., N]."""
        out: Tensor = _Fp4Product.apply(self.module.rows(x.float()), self.module)  # type: ignore[no-untyped-call]
        if self.module.bias is not None:
            out = out + self.module.bias.float()
        return out.view(*x.shape[:-1], self.module.plan.rows)
