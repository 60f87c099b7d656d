"""A packed linear whose scales can learn: the integers stay, and every rounding passes gradients straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.processor import fast_bfloat16
from dfrot.quant.modules.linear import QuantLinear
from dfrot.straight_through import straight_through
from dfrot_kernels.layouts import PackedWeight


class RoundedTo(nn.Module):
    """Parametrization: a float32 parameter, used as rounded to the dtype that the checkpoint stores."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """x float32 -> the same, rounded to `dtype`."""
        return straight_through(x, lambda value: value.to(self.dtype).float())


class _Product(torch.autograd.Function):
    """rows [M, K] through the packed linear -> float32 [M, stored rows], by the kernels that serve it.

    Gradients need not be exact: they are products of bfloat16 where the processor has them. The gradient of the
    logarithm of a row's factor is that of the output without bias, times this."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, growth: Tensor, linear: TrainableLinear) -> Tensor:
        out = linear.module.multiply(rows)
        ctx.linear = linear
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (out,) = ctx.saved_tensors
        linear, bias, rows = ctx.linear, ctx.linear.module.bias, None
        if ctx.needs_input_grad[0]:
            low = gradient.to(gradient_dtype())
            rows = (low @ linear.packed().dequantize(low.dtype)).float()
        growth = torch.linalg.vecdot(gradient, out, dim=0)
        if bias is not None:
            growth[: len(bias)] -= gradient[:, : len(bias)].sum(0) * bias  # second rows have none
        return rows, growth[:, None], None


def gradient_dtype() -> torch.dtype:
    """In which gradients of activations are multiplied."""
    return torch.bfloat16 if fast_bfloat16() else torch.float32


class TrainableLinear(nn.Module):
    """Replaces a QuantLinear while its scales learn, and runs it: the output is the one that will be served.

    growth: float32 [N, 1], the logarithm of a factor on the scales of each row; the products are rounded to bfloat16,
    as in the checkpoint. Groups have no factors of their own: few tokens say too little about so many."""

    def __init__(self, module: QuantLinear) -> None:
        """module: of a model in float32."""
        super().__init__()
        self.plan = module.plan
        self.out_features = self.plan.rows  # of a head: its vocabulary
        self.scale = module.stored_weight().scale.float()
        self.growth = nn.Parameter(torch.zeros(len(self.scale), 1))
        self.module = module.requires_grad_(False)

    def scales(self) -> Tensor:
        """The scales bfloat16 [N, G] now."""
        return (self.scale * self.growth.detach().exp()).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> float32 [..., N]."""
        self.module.set_scale(self.scales())
        rows = self.module.rows(x.float())
        out: Tensor = _Product.apply(rows, self.growth, self)  # type: ignore[no-untyped-call]
        return self.module.folded(out).view(*x.shape[:-1], self.plan.rows)

    def packed(self) -> PackedWeight:
        """The weight as the checkpoint stores it now."""
        weight = self.module.stored_weight()
        return PackedWeight(weight.packed, self.scales(), weight.zero, weight.bits, weight.group, weight.shape)
