"""The embedding of a packed dfq model: rows of integers, dequantized when a token is looked up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import dfrot_kernels  # noqa: F401  (registers torch.ops.dfq)
from dfrot.quant.modules.checked import check_packed_weight, register_packed_weight
from dfrot.quant.plan import LinearPlan
from dfrot_kernels.layouts import PackedWeight


class QuantEmbedding(nn.Module):
    """An embedding whose table [V, K] is stored as packed codes [V, row bytes], scale bfloat16 [V, G], zero uint8
    [V, G]. A row is `factor * round(scale (u - zero))`: exact in float32, rounded once to the model's dtype, then
    multiplied by the constant of architectures that scale inside their embedding."""

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero: Tensor | None

    def __init__(self, plan: LinearPlan, dtype: torch.dtype, factor: float = 1.0) -> None:
        """Tensors without values, for loading. dtype: of the rows. factor: what they are multiplied by."""
        super().__init__()
        self.plan, self.dtype, self.factor = plan, dtype, factor
        self.num_embeddings, self.embedding_dim = plan.rows, plan.cols
        register_packed_weight(self, plan)

    def stored_weight(self) -> PackedWeight:
        """The table as the kernels' value type."""
        p = self.plan
        return PackedWeight(
            self.weight_packed, self.weight_scale, self.weight_zero, p.w_bits, p.group, (p.rows, p.cols)
        )

    def prepare(self, name: str) -> None:
        """Check scales and zero codes. Called once, after loading. Raises InputError for damaged ones, naming the
        tensor of module `name`."""
        check_packed_weight(self.stored_weight(), name)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantEmbedding:
        """`model.to(dtype)` changes the dtype of the rows; stored scales stay bfloat16."""
        scale = self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=scale.device)).dtype
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 [...] -> rows [..., K] of the model's dtype."""
        p, rows = self.plan, ids.reshape(-1)
        packed, scale = self.weight_packed.index_select(0, rows), self.weight_scale.index_select(0, rows)
        zero = None if self.weight_zero is None else self.weight_zero.index_select(0, rows)
        out: Tensor = torch.ops.dfq.dequantize(packed, scale, zero, p.w_bits, p.cols, p.group)
        out = out.to(self.dtype)
        if self.factor != 1.0:
            out = out * torch.tensor(self.factor, dtype=self.dtype, device=out.device)
        return out.view(*ids.shape, p.cols)

    def dense(self) -> nn.Embedding:
        """A dense embedding with the same rows."""
        table = self(torch.arange(self.plan.rows))
        dense = nn.Embedding(self.plan.rows, self.plan.cols, _weight=table)
        return dense.requires_grad_(False)

    def extra_repr(self) -> str:
        """Shape and bits, for `repr(model)`."""
        return f"{self.plan.rows}, {self.plan.cols}, w{self.plan.w_bits}"
