"""`w4a16_mm` on the native library. Arguments are checked already."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels import bindings
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.ops.arguments import dense


def w4a16_mm(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> Tensor:
    """`w4a16_mm` of reference.py."""
    lead, k, n = x.shape[:-1], x.shape[-1], packed.shape[0]
    out = torch.empty((*lead, n), dtype=x.dtype)
    bindings.w4a16_mm(
        x=x.contiguous(), dtype=DTYPE_CODES[x.dtype], m=lead.numel(), n=n, k=k,
        packed=packed.contiguous(), scale=scale.contiguous(), zero=dense(zero), group=group, out=out,
    )  # fmt: skip
    return out
