"""The linears of a loaded dfq model: packed integer weights on our operators, and their simulated twin.

Both compute `Q(x H) W^T + b`: the input rotated by R4 where the model asks for it, quantized per token, multiplied,
scaled in float32 and cast once, to the input's dtype, at the end. The twin multiplies the integer codes of the
activations (as floats) with the dense weight and applies the token's scale afterwards: with one weight scale per
row, every partial sum is an integer times that scale and exact in float32, so packed and simulated models agree bit
for bit. That matters: a difference in the last bit flips 4-bit codes further on, and two runs that should be one
drift apart by tenths of a percent in perplexity. Sink rows (dfrot/quant/sinks.py) skip the activation quantizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dfrot_kernels  # noqa: F401  (registers torch.ops.dfq)
from dfrot.compat.forward import has_replaced_forward
from dfrot.errors import InputError
from dfrot.quant.plan import LinearPlan
from dfrot.quant.scheme import FULL
from dfrot.quant.sinks import Sinks
from dfrot_kernels import native
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.prepared import PreparedWeight


class _RotatedLinear(nn.Module):
    """What both linears share: the plan, R4 on the input, and which rows are sinks."""

    bias: nn.Parameter | None
    hadamard_base: Tensor | None

    def __init__(self, plan: LinearPlan, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.plan = plan
        self.in_features, self.out_features = plan.cols, plan.rows
        self.sinks: Sinks | None = None
        self.bias = nn.Parameter(torch.empty(plan.rows, dtype=dtype), requires_grad=False) if bias else None
        self.register_buffer("hadamard_base", None, persistent=False)

    def prepare(self, name: str) -> None:
        """Build what is derived from the plan, on the weights' device. Called once, after loading."""
        if self.plan.hadamard is not None:
            device = next(tensor.device for tensor in [*self.parameters(), *self.buffers()])
            self.hadamard_base = self.plan.hadamard.base().to(device)

    def rows(self, x: Tensor) -> Tensor:
        """x [..., K] -> rotated rows [M, K], contiguous."""
        rows = x.reshape(-1, self.plan.cols)
        if self.hadamard_base is not None:
            assert self.plan.hadamard is not None
            rows = torch.ops.dfq.hadamard(rows, self.hadamard_base, self.plan.hadamard.block)
        return rows

    def simulated(self, rows: Tensor, weight: Tensor) -> Tensor:
        """rows [M, K] times the dense float32 weight [N, K] -> float32 [M, N], activations as the plan says."""
        p = self.plan
        if p.a_bits == FULL:
            return F.linear(rows.float(), weight)
        codes, scale, zero = torch.ops.dfq.quantize_per_token(rows, p.a_bits, p.a_sym, p.a_clip)
        return F.linear(codes.float().sub_(zero[:, None]), weight).mul_(scale[:, None])

    def sink_rows(self) -> Tensor | None:
        """Indices of this call's rows that keep full-precision activations, or None."""
        return self.sinks.rows if self.sinks is not None and self.plan.a_bits != FULL else None

    def extra_repr(self) -> str:
        p = self.plan
        return f"{p.cols} -> {p.rows}, w{p.w_bits} a{p.a_bits}" + (", online Hadamard" if p.hadamard else "")


class QuantLinear(_RotatedLinear):
    """A linear whose weight is stored as packed codes [N, row bytes], scale bfloat16 [N, G], zero uint8 [N, G].

    4-bit weights run on the integer operators. Where a native kernel has a layout of its own for them (CPU, groups of
    whole blocks), `prepare` exchanges the stored tensors for that layout (`prepared`), and the state dict puts them
    together again: one copy in memory, the same files on disk. Other widths (2, 3, 5..8) are unpacked and multiplied
    in float32 on every call: right for accuracy studies, not fast.
    """

    weight_packed: Tensor | None
    weight_scale: Tensor | None
    weight_zero: Tensor | None

    def __init__(self, plan: LinearPlan, bias: bool, dtype: torch.dtype) -> None:
        super().__init__(plan, bias, dtype)
        self.prepared: PreparedWeight | None = None
        self.register_buffer("weight_packed", torch.empty(plan.rows, plan.row_bytes, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.empty(plan.rows, plan.groups, dtype=torch.bfloat16))
        zero = None if plan.w_sym else torch.empty(plan.rows, plan.groups, dtype=torch.uint8)
        self.register_buffer("weight_zero", zero)

    def weight(self) -> PackedWeight:
        """The stored weight as the kernels' value type."""
        if self.prepared is not None:
            return self.prepared.to_packed()
        p = self.plan
        assert self.weight_packed is not None
        assert self.weight_scale is not None
        return PackedWeight(
            self.weight_packed, self.weight_scale, self.weight_zero, p.w_bits, p.group, (p.rows, p.cols)
        )

    def prepare(self, name: str) -> None:
        super().prepare(name)
        weight = self.weight()
        if not bool(torch.isfinite(weight.scale).all()):
            raise InputError(f"tensor {name}.weight_scale holds NaN or Inf; the checkpoint is damaged, make it again")
        if weight.zero is not None and weight.zero.numel() and int(weight.zero.max()) >= 2**self.plan.w_bits:
            raise InputError(f"tensor {name}.weight_zero holds codes beyond {self.plan.w_bits} bits; make it again")
        self._prepack()

    def _prepack(self) -> None:
        """Into the kernels' layout, where there is one; the stored tensors go."""
        weight = self.weight()
        if self.prepared is None and PreparedWeight.serves(weight):
            shifted = self.plan.a_bits != FULL and not self.plan.a_sym
            self.prepared = PreparedWeight.from_packed(weight, with_sums=shifted)
            self.weight_packed = self.weight_scale = self.weight_zero = None
            native.drop_pages(weight.packed)

    def _unprepack(self) -> bool:
        """Back to the stored tensors; whether they were prepacked."""
        if self.prepared is None:
            return False
        weight, self.prepared = self.prepared.to_packed(), None
        self.weight_packed, self.weight_scale, self.weight_zero = weight.packed, weight.scale, weight.zero
        return True

    def _apply(self, fn: Any, recurse: bool = True) -> QuantLinear:
        """`model.to(dtype)` is meant for the model's floats, not for stored scales: they stay bfloat16."""
        prepacked = self._unprepack()
        scale = self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        assert scale is not None
        assert self.weight_scale is not None
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        if prepacked:
            self._prepack()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.prepared is not None:
            weight = self.prepared.to_packed()
            for name, tensor in (("packed", weight.packed), ("scale", weight.scale), ("zero", weight.zero)):
                if tensor is not None:
                    destination[f"{prefix}weight_{name}"] = tensor

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        prepacked = self._unprepack()
        super()._load_from_state_dict(*args, **kwargs)
        if prepacked:
            self._prepack()

    def shares_input(self, other: QuantLinear) -> bool:
        """Whether both make the same codes of an input now, with nobody looking on and no row exempt."""
        a, b = self.plan, other.plan
        return (
            self.prepared is not None
            and other.prepared is not None
            and a.a_bits != FULL
            and a.hadamard is None
            and (a.a_bits, a.a_sym, a.a_clip, b.hadamard) == (b.a_bits, b.a_sym, b.a_clip, None)
            and self.sink_rows() is None
            and not any(m._forward_hooks or m._forward_pre_hooks or has_replaced_forward(m) for m in (self, other))
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x)
        out = self._product(rows)
        sinks = self.sink_rows()
        if sinks is not None:
            out[sinks] = self._full(rows[sinks])
        return out.view(*x.shape[:-1], self.plan.rows)

    def _product(self, rows: Tensor) -> Tensor:
        """rows [M, K] with quantized activations -> [M, N] of their dtype, bias added in float32."""
        p = self.plan
        if p.a_bits == FULL:
            return self._full(rows)
        if p.w_bits != 4:
            return self._finished(self.simulated(rows, self._dense()), rows.dtype)
        q, scale, zero = torch.ops.dfq.quantize_per_token(rows, p.a_bits, p.a_sym, p.a_clip)
        if self.prepared is not None:
            return self.prepared.integer_linear(q, scale, None if p.a_sym else zero, self.bias, rows.dtype)
        product = torch.ops.dfq.w4a4_mm if p.a_bits <= 4 else torch.ops.dfq.w4a8_mm
        out: Tensor = product(q, scale, zero, self.weight_packed, self.weight_scale, self.weight_zero, p.group)
        return self._finished(out, rows.dtype)

    def _full(self, rows: Tensor) -> Tensor:
        """rows [M, K] with 16-bit activations -> [M, N] of their dtype, bias added in float32."""
        if self.prepared is not None:
            return self.prepared.linear(rows, self.bias)
        if self.plan.w_bits != 4:
            return self._finished(F.linear(rows.float(), self._dense()), rows.dtype)
        out: Tensor = torch.ops.dfq.w4a16_mm(
            rows.float(), self.weight_packed, self.weight_scale, self.weight_zero, self.plan.group
        )
        return self._finished(out, rows.dtype)

    def _finished(self, out: Tensor, dtype: torch.dtype) -> Tensor:
        """A float32 product with the bias added, cast once."""
        return (out if self.bias is None else out + self.bias.float()).to(dtype)

    def _dense(self) -> Tensor:
        return self.weight().dequantize(torch.float32)


class DenseLinear(_RotatedLinear):
    """A linear with a dense weight [N, K] that rotates or quantizes its input.

    It serves rotated 16-bit checkpoints (R4 only: then it is an ordinary matmul in the model's dtype), w16 schemes,
    and simulated checkpoints, whose weights lie on the integer grid. weight_dtype: as stored.
    """

    def __init__(self, plan: LinearPlan, bias: bool, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
        super().__init__(plan, bias, dtype)
        self.weight = nn.Parameter(torch.empty(plan.rows, plan.cols, dtype=weight_dtype), requires_grad=False)

    @classmethod
    def twin(cls, module: QuantLinear) -> DenseLinear:
        """The simulated twin of a packed linear, in float32, with the same state."""
        dtype = module.bias.dtype if module.bias is not None else torch.float32
        with torch.device("meta"):
            dense = cls(module.plan, False, dtype, torch.float32)
        dense.weight = nn.Parameter(module.weight().dequantize(torch.float32), requires_grad=False)
        dense.bias, dense.hadamard_base, dense.sinks = module.bias, module.hadamard_base, module.sinks
        return dense

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x)
        if self.plan.a_bits == FULL and self.weight.dtype == rows.dtype:
            out = F.linear(rows, self.weight, self.bias)
            return out.view(*x.shape[:-1], self.plan.rows)
        weight = self.weight.float()
        out = self.simulated(rows, weight)
        sinks = self.sink_rows()
        if sinks is not None:
            out[sinks] = F.linear(rows[sinks].float(), weight)
        if self.bias is not None:
            out = out + self.bias.float()
        return out.to(x.dtype).view(*x.shape[:-1], self.plan.rows)


def forward_shared_input(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """first(x) and second(x), with x quantized once where both are packed linears that do it alike."""
    if type(first) is not QuantLinear or type(second) is not QuantLinear or not first.shares_input(second):
        return first(x), second(x)
    rows, p = x.reshape(-1, first.plan.cols), first.plan
    q, scale, zero = torch.ops.dfq.quantize_per_token(rows, p.a_bits, p.a_sym, p.a_clip)
    shift = None if p.a_sym else zero
    out = []
    for one in (first, second):
        assert one.prepared is not None
        product = one.prepared.integer_linear(q, scale, shift, one.bias, rows.dtype)
        out.append(product.view(*x.shape[:-1], one.plan.rows))
    return out[0], out[1]


def simulate(model: Any) -> None:
    """Exchange every packed linear of a loaded model for its simulated twin."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            model.set_submodule(name, DenseLinear.twin(module).eval())
