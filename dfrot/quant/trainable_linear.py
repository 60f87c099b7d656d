"""A packed linear whose scales can learn: the integers stay, and every rounding passes gradients straight through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfrot.processor import fast_bfloat16
from dfrot.quant.linear import QuantLinear
from dfrot.quant.rotated_linear import hadamard
from dfrot.quant.scheme import FULL
from dfrot.quant.second_rows import folded_outputs
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


class _Product(torch.autograd.Function):
    """rows of codes [M, K] times integers [N, K] times scales [N] -> float32 [M, N], summed as the packed model sums.
    The gradient of the rows need not be exact: it is a product of bfloat16 where the processor has them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, integers: Tensor, scales: Tensor) -> Tensor:
        sums = F.linear(rows, integers)
        ctx.save_for_backward(sums, integers, scales)
        return sums * scales

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        sums, integers, scales = ctx.saved_tensors
        dtype = torch.bfloat16 if fast_bfloat16() else torch.float32
        rows = (gradient * scales).to(dtype) @ integers.to(dtype)
        return rows.float(), None, (gradient * sums).sum(0)


class RoundedTo(nn.Module):
    """Parametrization: a float32 parameter, used as rounded to the dtype that the checkpoint stores."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """x float32 -> the same, rounded to `dtype`."""
        return straight_through(x, lambda value: value.to(self.dtype).float())


class TrainableLinear(nn.Module):
    """Replaces a QuantLinear while its scales learn.

    growth: float32 [N, G], the logarithm of the factor on each scale; the product is rounded to bfloat16, as in the
    checkpoint. integers: float32 [N, K], codes less zero codes."""

    def __init__(self, module: QuantLinear) -> None:
        super().__init__()
        weight = module.stored_weight()
        self.plan, self.weight = module.plan, weight
        zero = torch.full_like(weight.scale, 2.0 ** (weight.bits - 1)) if weight.zero is None else weight.zero
        self.integers = weight.codes().float() - self._per_column(zero.float())
        self.scale = weight.scale.float()
        self.bias = None if module.bias is None else module.bias.detach().float()
        self.base, self.second = module.hadamard_base, module.weight_second
        self.growth = nn.Parameter(torch.zeros_like(self.scale))

    def _per_column(self, per_group: Tensor) -> Tensor:
        """[N, G] -> [N, K], or [N, 1] without groups."""
        group = self.plan.group
        return per_group.repeat_interleave(group, 1)[:, : self.plan.cols] if group else per_group

    def scales(self) -> Tensor:
        """The scales float32 [N, G], rounded to bfloat16."""
        return straight_through(self.scale * self.growth.exp(), lambda value: value.bfloat16().float())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> float32 [..., N]."""
        p = self.plan
        x = x.float()
        if self.base is not None and p.hadamard is not None:
            x = hadamard(x, self.base, p.hadamard.block)
        rows, step = x.reshape(-1, p.cols), None
        if p.a_bits != FULL:  # exactly the codes of the packed model: a different code here changes others further on
            codes, scale, zero = torch.ops.dfq.quantize_per_token(rows.detach(), p.a_bits, p.a_sym, p.a_clip)
            step = scale[:, None]
            centred = codes.float().sub_(zero[:, None])
            rows = straight_through(rows / step, lambda _: centred)
        if p.group:
            out = F.linear(rows, self.integers * self._per_column(self.scales()))
        else:
            out = _Product.apply(rows, self.integers, self.scales()[:, 0])  # type: ignore[no-untyped-call]
        out = out if step is None else out * step
        if self.second is not None:
            out = folded_outputs(out, self.second, p.rows)
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], p.rows)

    def packed(self) -> PackedWeight:
        """The weight as the checkpoint stores it now."""
        with torch.no_grad():
            scale = self.scales().bfloat16()
        w = self.weight
        return PackedWeight(w.packed, scale, w.zero, w.bits, w.group, w.shape)
