"""A packed linear whose scales and bias can learn: the integers stay, and every rounding passes gradients straight
through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.processor import fast_bfloat16
from dfrot.quant.linear import QuantLinear
from dfrot_kernels.layouts import PackedWeight


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """function(x), with the gradient of x itself (the estimator of arXiv 1308.3432)."""
    return _StraightThrough.apply(x, function)  # type: ignore[no-untyped-call, no-any-return]


class RoundedTo(nn.Module):
    """Parametrization: a float32 parameter, used as rounded to the dtype that the checkpoint stores."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """x float32 -> the same, rounded to `dtype`."""
        return straight_through(x, lambda value: value.to(self.dtype).float())


class _Product(torch.autograd.Function):
    """rows [M, K] through the packed linear -> float32 [M, N], by the kernels that serve it.

    Gradients need not be exact: they are products of bfloat16 where the processor has them. The gradient of a scale's
    logarithm is the gradient of what the scale multiplies, times that: of the output without bias where a row has one
    scale, else of the products of a group, which cost one more matrix product."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, growth: Tensor, bias: Tensor | None, linear: TrainableLinear) -> Tensor:
        out = linear.module.multiply(rows)
        ctx.linear, ctx.has_bias = linear, bias is not None
        inputs = linear.module.rounded(rows).to(_gradient_dtype()) if linear.plan.group else None
        ctx.save_for_backward(out, inputs, bias)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        out, inputs, bias = ctx.saved_tensors
        of_bias = None if bias is None else gradient.sum(0)
        rows = None
        if ctx.needs_input_grad[0] or inputs is not None:
            low = gradient.to(_gradient_dtype())
            weight = ctx.linear.packed().dequantize(low.dtype)
            rows = (low @ weight).float() if ctx.needs_input_grad[0] else None
        if inputs is not None:
            return rows, ctx.linear.per_group((low.T @ inputs).float().mul_(weight)), of_bias, None
        growth = torch.linalg.vecdot(gradient, out, dim=0)
        return rows, (growth if of_bias is None else growth.sub_(of_bias * bias))[:, None], of_bias, None


def _gradient_dtype() -> torch.dtype:
    return torch.bfloat16 if fast_bfloat16() else torch.float32


class TrainableLinear(nn.Module):
    """Replaces a QuantLinear while its scales learn, and runs it: the output is the one that will be served.

    growth: float32 [N, G], the logarithm of the factor on each scale; the product is rounded to bfloat16, as in the
    checkpoint. bias: float32 [N] or None, used as rounded to the dtype that the checkpoint stores."""

    def __init__(self, module: QuantLinear, stored: torch.dtype) -> None:
        """module: of a model in float32. stored: the checkpoint's dtype of the bias."""
        super().__init__()
        self.plan, self.stored = module.plan, stored
        weight = module.stored_weight()
        self.scale = weight.scale.float()
        self.growth = nn.Parameter(torch.zeros_like(self.scale))
        self.bias = None if module.bias is None else nn.Parameter(module.bias.detach().float().clone())
        self.module = module.requires_grad_(False)

    def scales(self) -> Tensor:
        """The scales bfloat16 [N, G] now."""
        return (self.scale * self.growth.detach().exp()).bfloat16()

    def stored_bias(self) -> Tensor | None:
        """The bias [N] now, in the dtype of the checkpoint."""
        return None if self.bias is None else self.bias.detach().to(self.stored)

    def per_group(self, products: Tensor) -> Tensor:
        """products [N, K] -> their sums [N, G] over the columns of each group."""
        group = self.plan.group
        padded = nn.functional.pad(products, (0, -products.shape[1] % group))
        return padded.view(len(products), -1, group).sum(-1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> float32 [..., N]."""
        with torch.no_grad():
            self.module.set_scale(self.scales())
            if (bias := self.stored_bias()) is not None:
                self.module.bias.copy_(bias)  # type: ignore[union-attr]
        rows = self.module.rows(x.float())
        out: Tensor = _Product.apply(rows, self.growth, self.bias, self)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], self.plan.rows)

    def packed(self) -> PackedWeight:
        """The weight as the checkpoint stores it now."""
        weight = self.module.stored_weight()
        return PackedWeight(weight.packed, self.scales(), weight.zero, weight.bits, weight.group, weight.shape)
