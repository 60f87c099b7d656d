"""Plain-torch reference of the tile16 family: products with weights that were prepacked once, at load.

Layout, with N16 = N rounded up to 16, K8 = K rounded up to 8 and G groups (padding: codes 0, scale 0, zero 8, sums 0):
  tiles  uint8 [N16 / 16, K8 / 8, 64]: byte 4 r + c of block (i, j) holds code (16 i + r, 8 j + c) in its low nibble
         and code (16 i + r, 8 j + 4 + c) in its high one (r 0..15, c 0..3)
  scale  bfloat16 [G, N16];  zero uint8 [G, N16] or None (8)
  sums   int32 [G, N16]: sum of the codes of each group, needed where activations have a zero point
A group is a multiple of 8 columns, or 0: one scale per row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dfrot_kernels.ops.packing.reference import pack, unpack
from dfrot_kernels.ops.w4a8.reference import w4a8_mm
from dfrot_kernels.ops.w4a16.reference import w4a16_mm

ROWS, DEPTH, BYTES = 16, 8, 64


def tile_codes(tiles: Tensor) -> Tensor:
    """tiles -> unsigned codes uint8 [N16, K8]."""
    count, blocks = tiles.shape[0], tiles.shape[1]
    cells = tiles.reshape(count, blocks, ROWS, 4)
    codes = torch.cat((cells & 15, cells >> 4), dim=-1)
    return codes.permute(0, 2, 1, 3).reshape(count * ROWS, blocks * DEPTH)


def prepack(packed: Tensor, k: int, group: int, with_sums: bool) -> tuple[Tensor, Tensor]:
    """Canonical 4-bit codes [N, ceil(K / 2)] -> tiles, sums ([0, N16] without `with_sums`)."""
    codes = unpack(packed, 4, k)
    codes = F.pad(codes, (0, -k % DEPTH, 0, -codes.shape[0] % ROWS))
    rows, columns = codes.shape
    cells = codes.reshape(rows // ROWS, ROWS, columns // DEPTH, 2, 4).permute(0, 2, 1, 3, 4)
    tiles = (cells[..., 0, :] | (cells[..., 1, :] << 4)).reshape(rows // ROWS, columns // DEPTH, BYTES)
    step = group or max(k, 1)
    parts = [codes[:, begin : begin + step].sum(1, dtype=torch.int32) for begin in range(0, max(k, 1), step)]
    sums = torch.stack(parts) if with_sums else packed.new_zeros((0, rows), dtype=torch.int32)
    return tiles.contiguous(), sums


def unprepack(tiles: Tensor, n: int, k: int) -> Tensor:
    """Inverse of `prepack`: tiles -> packed uint8 [N, ceil(K / 2)]."""
    return pack(tile_codes(tiles)[:n, :k].contiguous(), 4)


def _canonical(
    tiles: Tensor, scale: Tensor, zero: Tensor | None, n: int, k: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    return unprepack(tiles, n, k), scale[:, :n].T, None if zero is None else zero[:, :n].T


def _finished(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y if bias is None else y + bias.float()).to(dtype)


def w4a16_tiled_mm(
    x: Tensor, tiles: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, n: int, group: int
) -> Tensor:
    """x [..., K] times the weight [N, K] transposed, plus bias [N]: float32 inside, cast once to x's dtype."""
    weight = _canonical(tiles, scale, zero, n, x.shape[-1])
    return _finished(w4a16_mm(x.float(), *weight, group), bias, x.dtype)


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
    """int8 codes [M, K] times the weight, plus bias: the float32 of `w4a8_mm`, cast once to `dtype`.

    x_zero None: no zero points."""
    weight = _canonical(tiles, scale, zero, n, q.shape[1])
    shift = torch.zeros_like(x_scale, dtype=torch.int32) if x_zero is None else x_zero
    return _finished(w4a8_mm(q, x_scale, shift, *weight, group), bias, dtype)
