"""Small floating-point formats, exactly: FP4 (E2M1), FP8 (E4M3) and exponents alone (E8M0), in plain torch.

Values and codes are those of the OCP formats (Microscaling Formats 1.0; FP8 formats, arXiv 2209.05433). Encoding rounds
to the nearest value of the format, ties to the even code, and values beyond the largest become the largest. Decoding is
exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXPONENT_BIAS = 127
"""Of E8M0, and of float32."""
NO_EXPONENT = 255
"""The code of E8M0 that is no number."""
_MANTISSA = 23  # bits of a float32 mantissa
_EXPONENTS = 0x7F800000  # the bits of a float32 exponent
_BETWEEN_SMALLEST = 0x00600000  # 1.5 * 2^-127, a subnormal float32, between the codes 0 and 1 of E8M0


@dataclass(frozen=True)
class FloatFormat:
    """A format of sign, exponent and mantissa, with subnormal numbers and without infinities."""

    name: str
    mantissa: int
    """Bits of the mantissa."""
    bias: int
    """What is subtracted from the stored exponent."""
    largest: float
    """The largest value."""
    bits: int
    """Bits of a code, sign included."""
    nan: int | None = None
    """The positive code that is no number."""

    @property
    def smallest(self) -> float:
        """The smallest positive value."""
        return float(2.0 ** (1 - self.bias - self.mantissa))

    def _steps(self, magnitude: Tensor) -> Tensor:
        """The distance of neighbouring values around magnitudes float32: a power of two."""
        power = (magnitude.view(torch.int32) & _EXPONENTS).view(torch.float32)
        return power.clamp_(min=2.0 ** (1 - self.bias)).mul_(2.0**-self.mantissa)

    def round(self, x: Tensor) -> Tensor:
        """float32 of any shape -> the nearest values of the format, float32. NaN stays NaN."""
        clamped = x.clamp(-self.largest, self.largest)
        steps = self._steps(clamped)
        return clamped.div_(steps).round_().mul_(steps)

    def encode(self, x: Tensor) -> Tensor:
        """float32 of any shape -> codes uint8. NaN becomes the format's, or the largest value where it has none."""
        magnitude = x.abs().nan_to_num_(nan=self.largest, posinf=self.largest).clamp_(max=self.largest)
        steps = self._steps(magnitude)
        exponent = (steps.view(torch.int32) >> _MANTISSA) - EXPONENT_BIAS + self.mantissa
        # one formula for all: a subnormal lacks the leading bit that raises the exponent, rounding up carries into it
        codes = ((exponent + self.bias - 1) << self.mantissa) + (magnitude / steps).round_().to(torch.int32)
        if self.nan is not None:
            codes = codes.masked_fill_(torch.isnan(x), self.nan)
        return (codes | (torch.signbit(x).to(torch.int32) << (self.bits - 1))).to(torch.uint8)

    def values(self) -> Tensor:
        """The values of all codes, float32 [2^bits]."""
        codes = torch.arange(2 ** (self.bits - 1))
        stored, rest = codes >> self.mantissa, codes & (2**self.mantissa - 1)
        leading = torch.where(stored > 0, 2**self.mantissa, 0)
        exponent = stored.clamp(min=1) - self.bias - self.mantissa
        positive = torch.ldexp((rest + leading).float(), exponent.int())
        if self.nan is not None:
            positive[self.nan] = torch.nan
        return torch.cat([positive, -positive])

    def decode(self, codes: Tensor) -> Tensor:
        """codes uint8 of any shape -> float32."""
        return self.values()[codes.int()]


E2M1 = FloatFormat("E2M1", mantissa=1, bias=1, largest=6.0, bits=4)
"""FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives."""
E4M3 = FloatFormat("E4M3", mantissa=3, bias=7, largest=448.0, bits=8, nan=127)
"""FP8 without infinities: torch.float8_e4m3fn."""


def fp4_values(packed: Tensor) -> Tensor:
    """uint8 [..., n], two FP4 codes each, the even column in the low half -> float32 [..., 2 n]."""
    table = E2M1.values()
    return torch.stack([table[(packed & 15).int()], table[(packed >> 4).int()]], -1).flatten(-2)


def exponents(codes: Tensor) -> Tensor:
    """Exponents of one byte (E8M0, or as uint8) -> float32 powers of two. 255 is NaN, as the format has it."""
    codes = codes.view(torch.uint8)
    powers = torch.ldexp(torch.ones(codes.shape), codes.to(torch.int32) - EXPONENT_BIAS)
    return powers.masked_fill(codes == NO_EXPONENT, torch.nan)


def exponent_codes(x: Tensor) -> Tensor:
    """float32 of any shape, at least 0 -> uint8: exponents of the nearest powers of two, 1.5 rounded up as torch does.

    What is below the smallest power becomes it, infinity the largest; NaN and negative values are no exponents."""
    wide = x.contiguous().view(torch.int32)
    codes = ((wide >> (_MANTISSA - 1)) + 1) >> 1
    codes = codes.masked_fill_(wide < _BETWEEN_SMALLEST, 0).clamp_(max=NO_EXPONENT - 1)
    return codes.masked_fill(torch.isnan(x) | (x < 0), NO_EXPONENT).to(torch.uint8)
