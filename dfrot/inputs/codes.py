"""Codes as formats pack them, taken apart: bit strings in 32-bit words, FP4 values, exponents."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of the codes of FP4: sign, two bits of exponent, one of mantissa."""
EXPONENT_BIAS = 127


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


def fp4_values(packed: Tensor) -> Tensor:
    """uint8 [..., n], two FP4 codes each, the even column in the low half -> float32 [..., 2 n]."""
    table = torch.tensor(E2M1)
    return torch.stack([table[(packed & 15).int()], table[(packed >> 4).int()]], -1).flatten(-2)


def exponents(codes: Tensor) -> Tensor:
    """Exponents of one byte (E8M0, or as uint8) -> float32 powers of two. 255 is NaN, as the format has it."""
    codes = codes.view(torch.uint8)
    powers = torch.ldexp(torch.ones(codes.shape), codes.to(torch.int32) - EXPONENT_BIAS)
    return powers.masked_fill(codes == 255, torch.nan)
