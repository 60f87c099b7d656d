"""What the packed linear of a loaded dfq model and its simulated twin have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dfrot_kernels  # noqa: F401  (registers torch.ops.dfq)
from dfrot.quant.fp4 import round_groups
from dfrot.quant.plan import LinearPlan
from dfrot.quant.scheme import FULL, INTEGERS
from dfrot.quant.sinks import Sinks


class _Hadamard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, block: int) -> Tensor:
        ctx.base, ctx.block = base, block
        out: Tensor = torch.ops.dfq.hadamard(x.contiguous(), base, block)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # orthogonal: the transpose, which is base^T (x) Sylvester
        return torch.ops.dfq.hadamard(gradient.contiguous(), ctx.base.T.contiguous(), ctx.block), None, None


def hadamard(x: Tensor, base: Tensor, block: int) -> Tensor:
    """`torch.ops.dfq.hadamard` of x [..., K] with a gradient. base [n, n], block: of the HadamardSpec."""
    return _Hadamard.apply(x, base, block)  # type: ignore[no-untyped-call, no-any-return]


class RotatedLinear(nn.Module):
    """A linear that rotates (R4) and quantizes its input as its plan says: `Q(x H) W^T + b`.

    sinks: which rows of the running call keep full-precision activations; None: no sinks."""

    bias: nn.Parameter | None
    hadamard_base: Tensor | None

    def __init__(self, plan: LinearPlan, bias: bool, dtype: torch.dtype) -> None:
        """bias: whether there is one, of this dtype."""
        super().__init__()
        self.plan = plan
        self.in_features, self.out_features = plan.cols, plan.rows
        self.sinks: Sinks | None = None
        self.bias = nn.Parameter(torch.empty(plan.rows, dtype=dtype), requires_grad=False) if bias else None
        self.register_buffer("hadamard_base", None, persistent=False)

    def prepare(self, name: str) -> None:
        """Build what is derived from the plan, on the weights' device. Called once, after loading. name: of the module
        in the checkpoint, for error messages."""
        if self.plan.hadamard is not None:
            device = next(tensor.device for tensor in [*self.parameters(), *self.buffers()])
            self.hadamard_base = self.plan.hadamard.base().to(device)

    def rows(self, x: Tensor) -> Tensor:
        """x [..., K] -> rotated rows [M, K], contiguous."""
        rows = x.reshape(-1, self.plan.cols)
        if self.hadamard_base is not None:
            assert self.plan.hadamard is not None
            if rows.requires_grad and torch.is_grad_enabled():  # an adapter is trained on a rotated checkpoint
                return hadamard(rows, self.hadamard_base, self.plan.hadamard.block)
            rows = torch.ops.dfq.hadamard(rows, self.hadamard_base, self.plan.hadamard.block)
        return rows

    def simulated(self, rows: Tensor, weight: Tensor) -> Tensor:
        """rows [M, K] times the dense float32 weight [N, K] -> float32 [M, N], activations as the plan says."""
        p = self.plan
        if p.a_bits == FULL:
            return F.linear(rows.float(), weight)
        if p.number_format != INTEGERS:
            return F.linear(round_groups(rows, p.number_format, p.a_scale), weight)
        codes, scale, zero = torch.ops.dfq.quantize_per_token(rows, p.a_bits, p.a_sym, p.a_clip)
        return F.linear(codes.float().sub_(zero[:, None]), weight).mul_(scale[:, None])

    def dense_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [..., K] times a dense weight float [N, K], as the plan says -> [..., N] of the dtype of x."""
        rows = self.rows(x)
        if self.plan.a_bits == FULL and weight.dtype == rows.dtype:
            return F.linear(rows, weight, self.bias).view(*x.shape[:-1], self.plan.rows)
        out = self.product_beside_sinks(rows, weight.float())
        if self.bias is not None:
            out = out + self.bias.float()
        return out.to(x.dtype).view(*x.shape[:-1], self.plan.rows)

    def product_beside_sinks(self, rows: Tensor, weight: Tensor) -> Tensor:
        """`simulated`, with sink rows in full precision."""
        out, sinks = self.simulated(rows, weight), self.sink_rows()
        if sinks is not None:
            out[sinks] = F.linear(rows[sinks].float(), weight)
        return out

    def sink_rows(self) -> Tensor | None:
        """Indices int64 of this call's rows that keep full-precision activations, or None."""
        return self.sinks.rows if self.sinks is not None and self.plan.a_bits != FULL else None

    def extra_repr(self) -> str:
        """Shape, bits and rotation, for `repr(model)`."""
        p = self.plan
        kind = "" if p.number_format == INTEGERS else f"{p.number_format} "
        return f"{p.cols} -> {p.rows}, {kind}w{p.w_bits} a{p.a_bits}" + (", online Hadamard" if p.hadamard else "")
