"""The linear of a packed dfq model: integer weights on our operators.

It computes `Q(x H) W^T + b`: the input rotated by R4 where the model asks for it, quantized per token, multiplied,
scaled in float32 and cast once, to the input's dtype, at the end. Sink rows (dfrot/quant/sinks.py) skip the activation
quantizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfrot.compat.forward import has_replaced_forward
from dfrot.quant.modules.checked import check_packed_weight, register_packed_weight
from dfrot.quant.modules.rotated_linear import RotatedLinear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.scheme import FULL
from dfrot.quant.second_rows import check_second, folded_outputs, folded_weight
from dfrot_kernels import memory
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.ops.w8a16.schema import supports
from dfrot_kernels.prepared import PreparedWeight

INTEGER_BITS = 4
"""Width of the weights for which there are integer operators."""


class QuantLinear(RotatedLinear):
    """A linear whose weight is stored as packed codes [N, row bytes], scale bfloat16 [N, G], zero uint8 [N, G].

    4-bit weights run on the integer operators. Where a native kernel has a layout of its own for them (CPU, groups of
    whole blocks), `prepare` replaces the stored tensors by that layout (`prepared`), and the state dict converts it
    back: one copy in memory, the same files on disk. Symmetric 8-bit weights with 16-bit activations are multiplied as
    they lie on disk. Everything else (2, 3, 5..8 bits) is unpacked and multiplied in float32 on every call: right for
    accuracy studies, not fast.
    """

    weight_packed: Tensor | None
    weight_scale: Tensor | None
    weight_zero: Tensor | None
    weight_second: Tensor | None

    def __init__(self, plan: LinearPlan, bias: bool, dtype: torch.dtype) -> None:
        """Tensors without values, for loading. bias: whether there is one, of this dtype."""
        super().__init__(plan, bias, dtype)
        self.prepared: PreparedWeight | None = None
        register_packed_weight(self, plan)

    def stored_weight(self) -> PackedWeight:
        """The stored weight as the kernels' value type, second rows behind the others."""
        if self.prepared is not None:
            return self.prepared.to_packed()
        p = self.plan
        assert self.weight_packed is not None
        assert self.weight_scale is not None
        return PackedWeight(
            self.weight_packed, self.weight_scale, self.weight_zero, p.w_bits, p.group, (p.stored_rows, p.cols)
        )

    def dequantized(self) -> Tensor:
        """The weight as float32 [N, K]."""
        weight = self.stored_weight().dequantize(torch.float32)
        return weight if self.weight_second is None else folded_weight(weight, self.weight_second, self.plan.rows)

    @property
    def qweight(self) -> Tensor:
        """The codes in the layout in use, uint8: the name under which peft looks for a quantized linear's device."""
        codes = self.weight_packed if self.prepared is None else self.prepared.tiles
        assert codes is not None
        return codes

    def prepare(self, name: str) -> None:
        """Check scales and zero codes and change to the kernels' layout. Called once, after loading. Raises InputError
        for damaged ones, naming the tensor of module `name`."""
        super().prepare(name)
        check_packed_weight(self.stored_weight(), name)
        if self.weight_second is not None:
            check_second(self.weight_second, self.plan.rows, name)
        self._prepack()

    def _prepack(self) -> None:
        """Change to the kernels' layout, where there is one, and free the stored tensors."""
        weight = self.stored_weight()
        if self.prepared is None and PreparedWeight.serves(weight):
            shifted = self.plan.a_bits != FULL and not self.plan.a_sym
            self.prepared = PreparedWeight.from_packed(weight, with_sums=shifted)
            self.weight_packed = self.weight_scale = self.weight_zero = None
            memory.drop_pages(weight.packed)

    def _unprepack(self) -> bool:
        """Change back to the stored tensors; returns whether the kernels' layout was in use."""
        if self.prepared is None:
            return False
        weight, self.prepared = self.prepared.to_packed(), None
        self.weight_packed, self.weight_scale, self.weight_zero = weight.packed, weight.scale, weight.zero
        return True

    def _apply(self, fn: Any, recurse: bool = True) -> QuantLinear:
        """`model.to(dtype)` is meant for the model's own floats; stored scales stay bfloat16."""
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
        """Whether both linears quantize an input to the same codes now, and neither has hooks or sinks."""
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
        """x [..., K] -> [..., N] of its dtype."""
        return self.folded(self.multiply(self.rows(x))).view(*x.shape[:-1], self.plan.rows)

    def multiply(self, rows: Tensor) -> Tensor:
        """rows [M, K], as `rows` returns them -> [M, stored rows] of their dtype; sinks with 16-bit activations."""
        out = self._product(rows)
        sinks = self.sink_rows()
        if sinks is not None:
            out[sinks] = self._full(rows[sinks])
        return out

    def folded(self, out: Tensor) -> Tensor:
        """Outputs [M, stored rows] -> [M, N]: second rows added to those that they belong to."""
        return out if self.weight_second is None else folded_outputs(out, self.weight_second, self.plan.rows)

    def set_scale(self, scale: Tensor) -> None:
        """Replace the scales by bfloat16 [stored rows, G]; the codes stay. For training them."""
        if self.prepared is not None:
            self.prepared = self.prepared.with_scale(scale)
        else:
            self.weight_scale = scale

    def _product(self, rows: Tensor) -> Tensor:
        """rows [M, K] with quantized activations -> [M, N] of their dtype, bias added in float32."""
        p = self.plan
        if p.a_bits == FULL:
            return self._full(rows)
        if p.w_bits != INTEGER_BITS:
            return self._finished(self.simulated(rows, self._dense()), rows.dtype)
        codes, scale, zero = torch.ops.dfq.quantize_per_token(rows, p.a_bits, p.a_sym, p.a_clip)
        if self.prepared is not None:
            return self.prepared.integer_linear(codes, scale, None if p.a_sym else zero, self.bias, rows.dtype)
        product = torch.ops.dfq.w4a4_mm if p.a_bits <= 4 else torch.ops.dfq.w4a8_mm
        out: Tensor = product(codes, scale, zero, self.weight_packed, self.weight_scale, self.weight_zero, p.group)
        return self._finished(out, rows.dtype)

    def _full(self, rows: Tensor) -> Tensor:
        """rows [M, K] with 16-bit activations -> [M, N] of their dtype, bias added in float32."""
        if self.prepared is not None:
            return self.prepared.linear(rows, self._stored_bias())
        if self._has_bytes:
            product: Tensor = torch.ops.dfq.w8a16_mm(
                rows if self.bias is None else rows.float(), self.weight_packed, self.weight_scale, self.plan.group
            )
            return self._finished(product, rows.dtype)
        if self.plan.w_bits != INTEGER_BITS:
            return self._finished(F.linear(rows.float(), self._dense()), rows.dtype)
        out: Tensor = torch.ops.dfq.w4a16_mm(
            rows.float(), self.weight_packed, self.weight_scale, self.weight_zero, self.plan.group
        )
        return self._finished(out, rows.dtype)

    @property
    def _has_bytes(self) -> bool:
        """Whether the weight has a product of 8-bit codes with floats."""
        p = self.plan
        return supports(p.w_bits, p.cols, p.group, p.w_sym)

    def _stored_bias(self) -> Tensor | None:
        """The bias of every stored row; second rows have none of their own."""
        if self.bias is None or not self.plan.second_rows:
            return self.bias
        return F.pad(self.bias, (0, self.plan.second_rows))

    def _finished(self, out: Tensor, dtype: torch.dtype) -> Tensor:
        """A float32 product with the bias added, cast once."""
        bias = self._stored_bias()
        return (out if bias is None else out + bias.float()).to(dtype)

    def _dense(self) -> Tensor:
        return self.stored_weight().dequantize(torch.float32)


def forward_shared_input(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """first(x) and second(x) of x [..., K], quantized once where both are packed linears that quantize it alike."""
    if type(first) is not QuantLinear or type(second) is not QuantLinear or not first.shares_input(second):
        return first(x), second(x)
    rows, p = x.reshape(-1, first.plan.cols), first.plan
    codes, scale, zero = torch.ops.dfq.quantize_per_token(rows, p.a_bits, p.a_sym, p.a_clip)
    shift = None if p.a_sym else zero
    outputs = []
    for linear in (first, second):
        assert linear.prepared is not None
        product = linear.prepared.integer_linear(codes, scale, shift, linear.bias, rows.dtype)
        outputs.append(product.view(*x.shape[:-1], linear.plan.rows))
    return outputs[0], outputs[1]
