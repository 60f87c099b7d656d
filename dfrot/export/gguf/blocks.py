"""Our codes as the blocks of GGUF: 32 columns with one float16 scale (and, asymmetric, one float16 offset).

Q4_0: d, 16 bytes; byte j holds element j (low nibble) and j + 16; value d (u - 8). Q4_1: d, m, the same nibbles; value
d u + m. Q5_0, Q5_1: four bytes with the fifth bits (bit j belongs to element j) before the nibbles. Q8_0: d and 32
signed bytes. Our `scale (u - zero)` maps to d = scale, u = u, m = -zero scale: exact wherever float16 holds the scale
(and the product). Wider groups repeat their scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.export.float16_scales import Float16Rounding
from dfrot.export.targets import Storage
from dfrot_kernels.layouts import PackedWeight


def pack_blocks(weight: PackedWeight, storage: Storage, rounding: Float16Rounding, name: str) -> Tensor:
    """uint8 [N, K / 32 * block_bytes] of the packed weight [N, K] called `name`; K is a multiple of 32.

    Raises UnsupportedError for scales beyond float16."""
    n, k = weight.shape
    size = storage.block
    codes = weight.codes().view(n, k // size, size)
    repeat = (weight.group or k) // size
    scale = weight.scale.float()
    parts = [_float16_bytes(rounding.to_float16(scale, name), repeat)]
    if weight.zero is not None:
        parts.append(_float16_bytes(rounding.to_float16(-weight.zero.float() * scale, name), repeat))
    if storage.bits == 8:
        parts.append((codes.to(torch.int16) - 128).to(torch.int8).view(torch.uint8))
    else:
        if storage.bits == 5:
            parts.append(_fifth_bits(codes))
        low = codes & 15
        parts.append(low[..., : size // 2] | (low[..., size // 2 :] << 4))
    out = torch.cat(parts, dim=-1)
    assert out.shape[-1] == storage.block_bytes
    return out.reshape(n, -1)


def _float16_bytes(values: Tensor, repeat: int) -> Tensor:
    """float16 [N, G] -> their bytes uint8 [N, blocks, 2], each repeated for the `repeat` blocks of its group."""
    return values.repeat_interleave(repeat, dim=1).contiguous().view(torch.uint8).view(len(values), -1, 2)


def _fifth_bits(codes: Tensor) -> Tensor:
    """Bit 4 of 32 codes uint8 [..., 32] as four bytes [..., 4]."""
    bits = (codes >> 4).view(*codes.shape[:-1], 4, 8)
    weights = (1 << torch.arange(8)).to(torch.uint8)
    return (bits * weights).sum(-1, dtype=torch.uint8)
