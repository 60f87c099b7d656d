"""`w8a16_mm` on the native library. Arguments are checked already."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels import abi, bindings
from dfrot_kernels.dtypes import DTYPE_CODES


def w8a16_mm(x: Tensor, packed: Tensor, scale: Tensor, group: int) -> Tensor:
    """`w8a16_mm` of reference.py. Every row has the bits that it has alone, with every instruction set."""
    lead, k, n = x.shape[:-1], x.shape[-1], packed.shape[0]
    if not (lead.numel() and n and k):
        return torch.zeros((*lead, n), dtype=x.dtype)
    out = torch.empty((*lead, n), dtype=x.dtype)
    bindings.dense(
        x=x.contiguous(), dtype=DTYPE_CODES[x.dtype], m=lead.numel(), n=n, k=k, weight=packed.contiguous(),
        kind=abi.KIND.values["DFQ_CODES8"], scale=scale.contiguous(), group=group, out=out,
    )  # fmt: skip
    return out
