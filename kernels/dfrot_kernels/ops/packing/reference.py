"""Plain-torch reference of packing: codes to dense bit strings and back, and the weights that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [N, K] -> uint8 [N, ceil(K * bits / 8)], a dense little-endian bit string along K."""
    n, k = codes.shape
    width = (k * bits + 7) // 8
    if bits == 8:
        return codes.clone()
    if bits == 4:
        padded = torch.nn.functional.pad(codes, (0, k % 2))
        bytes_of = padded[:, 0::2] | (padded[:, 1::2] << 4)
        return bytes_of.flatten().view(n, width)  # a single row or column keeps the inputs' strides otherwise
    spread = (codes.unsqueeze(-1) >> torch.arange(bits, dtype=torch.uint8, device=codes.device)) & 1
    stream = torch.nn.functional.pad(spread.reshape(n, k * bits), (0, width * 8 - k * bits))
    weights = 2 ** torch.arange(8, dtype=torch.int32, device=codes.device)
    return (stream.reshape(n, width, 8).to(torch.int32) * weights).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, k: int) -> Tensor:
    """Inverse of `pack`: uint8 [N, ceil(K * bits / 8)] -> uint8 codes [N, K]."""
    n = packed.shape[0]
    if bits == 8:
        return packed.clone()
    if bits == 4:
        return torch.stack((packed & 15, packed >> 4), dim=-1).reshape(n, 2 * packed.shape[1])[:, :k].contiguous()
    stream = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    spread = stream.reshape(n, 8 * packed.shape[1])[:, : k * bits].reshape(n, k, bits).to(torch.int32)
    weights = 2 ** torch.arange(bits, dtype=torch.int32, device=packed.device)
    return (spread * weights).sum(-1).to(torch.uint8)


def _per_column(values: Tensor, k: int, group: int) -> Tensor:
    """[N, G] -> [N, K]: each group's value at each of its columns."""
    if group == 0:
        return values.expand(-1, k)
    return values.repeat_interleave(group, dim=1)[:, :k]


def signed_codes(packed: Tensor, zero: Tensor | None, bits: int, k: int, group: int) -> Tensor:
    """u - zero as int32 [N, K]."""
    codes = unpack(packed, bits, k).to(torch.int32)
    if zero is None:
        return codes - (1 << (bits - 1))
    return codes - _per_column(zero.to(torch.int32), k, group)


def dequantize(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, k: int, group: int) -> Tensor:
    """Packed weight -> float32 [N, K], exactly scale * (u - zero)."""
    return signed_codes(packed, zero, bits, k, group).float() * _per_column(scale.float(), k, group)
