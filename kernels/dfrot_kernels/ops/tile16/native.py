"""The ops on prepacked weights on the native library. Arguments are checked already."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels import bindings
from dfrot_kernels.dtypes import DTYPE_CODES
from dfrot_kernels.ops.arguments import dense
from dfrot_kernels.ops.tile16.reference import BYTES, DEPTH, ROWS
from dfrot_kernels.ops.tile16.schema import groups_of


def _float32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32).contiguous()


def prepack(packed: Tensor, k: int, group: int, with_sums: bool) -> tuple[Tensor, Tensor]:
    """`prepack` of reference.py."""
    n, groups = packed.shape[0], groups_of("prepack", k, group)
    tiles = torch.empty((-(-n // ROWS), -(-k // DEPTH), BYTES), dtype=torch.uint8)
    sums = torch.empty((groups if with_sums else 0, tiles.shape[0] * ROWS), dtype=torch.int32)
    bindings.prepack(packed=packed.contiguous(), n=n, k=k, group=group, tiles=tiles, sums=sums if with_sums else None)
    return tiles, sums


def unprepack(tiles: Tensor, n: int, k: int) -> Tensor:
    """`unprepack` of reference.py."""
    packed = torch.empty((n, (k + 1) // 2), dtype=torch.uint8)
    bindings.unprepack(tiles=tiles.contiguous(), n=n, k=k, packed=packed)
    return packed


def w4a16_tiled_mm(
    x: Tensor, tiles: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, n: int, group: int
) -> Tensor:
    """`w4a16_tiled_mm` of reference.py."""
    k = x.shape[-1]
    out = x.new_empty((x.shape[0], n) if x.dim() == 2 else (*x.shape[:-1], n))
    m = x.numel() // k if k else out.numel() // max(n, 1)
    bindings.tiled_w4a16(
        x=x.contiguous(), dtype=DTYPE_CODES[x.dtype], m=m, n=n, k=k, tiles=tiles.contiguous(),
        scale=scale.contiguous(), zero=dense(zero), group=group, bias=_float32(bias), out=out,
    )  # fmt: skip
    return out


def w4a8_tiled_mm(
    q: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    tiles: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    sums: Tensor | None,
    bias: Tensor | None,
    n: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    """`w4a8_tiled_mm` of reference.py."""
    m, k = q.shape
    out = torch.empty((m, n), dtype=dtype)
    bindings.tiled_w4a8(
        q=q.contiguous(), x_scale=x_scale.contiguous(), x_zero=dense(x_zero), m=m, n=n, k=k,
        tiles=tiles.contiguous(), scale=scale.contiguous(), zero=dense(zero), sums=dense(sums), group=group,
        bias=_float32(bias), dtype=DTYPE_CODES[dtype], out=out,
    )  # fmt: skip
    return out
