"""Codes as formats pack them, taken apart: bit strings in 32-bit words."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32


def unpack_bits(words: Tensor, bits: int, count: int, dim: int) -> Tensor:
    """int32 words that hold a dense string of `bits`-bit codes along `dim`, lowest bit first -> uint8 codes, `count`
    along `dim`. A code may begin in one word and end in the next (3, 5, 6 and 7 bits)."""
    moved = words.movedim(dim, -1)
    if 8 % bits == 0:
        octets = moved.contiguous().view(torch.uint8)  # little-endian, as the format and every processor we run on
        codes = torch.stack([(octets >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], -1)
        return codes.flatten(-2)[..., :count].movedim(-1, dim)
    position = torch.arange(count) * bits
    first, shift = position // WORD, position % WORD
    wide = moved.to(torch.int64) & 0xFFFFFFFF
    codes = wide[..., first] >> shift
    if WORD % bits:
        second = (first + 1).clamp(max=moved.shape[-1] - 1)
        codes |= wide[..., second] << (WORD - shift)
    out: Tensor = (codes & (2**bits - 1)).to(torch.uint8).movedim(-1, dim)
    return out


def packed_words(count: int, bits: int) -> int:
    """Words that hold `count` codes."""
    return -(-count * bits // WORD)
