"""`w4a8_mm`, `w4a4_mm` on the native library. Arguments are checked already."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels import bindings
from dfrot_kernels.ops.arguments import dense


def integer_mm(
    q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
) -> Tensor:
    """`w4a8_mm` of reference.py. The kernel measures the range of the codes: those of four bits take a faster path."""
    m, k = q.shape
    n = packed.shape[0]
    out = torch.empty((m, n), dtype=torch.float32)
    bindings.w4a8_mm(
        q=q.contiguous(), x_scale=x_scale.contiguous(), x_zero=x_zero.contiguous(), m=m, n=n, k=k,
        packed=packed.contiguous(), scale=scale.contiguous(), zero=dense(zero), group=group, out=out,
    )  # fmt: skip
    return out
