"""E2M1, E4M3 and E8M0: all codes, halfway points, saturation, and torch's own formats where it has them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot.number_formats import E2M1, E4M3, FloatFormat, exponent_codes, exponents, fp4_values

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def numbers(decades: int) -> Tensor:
    magnitude = 10 ** torch.linspace(-decades, decades, 50_000)
    return torch.randn(50_000, generator=torch.Generator().manual_seed(0)) * magnitude


def test_values_of_all_codes() -> None:
    assert E2M1.values().tolist() == [*FP4, *(-value for value in FP4)]
    assert bool(torch.signbit(E2M1.values()[8]))
    values = E4M3.values()
    # exponent 0: subnormal steps of 2^-9; 15: up to 448, then NaN
    assert values[[0, 1, 7, 8, 9, 126]].tolist() == [0, 2**-9, 7 * 2**-9, 2**-6, 9 * 2**-9, 448]
    assert values[:127].tolist() == sorted(values[:127].tolist())
    assert values.isnan().nonzero().flatten().tolist() == [127, 255]
    assert (E2M1.smallest, E4M3.smallest) == (0.5, 2**-9)


def test_e4m3_is_torchs() -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(E4M3.values(), theirs, rtol=0, atol=0, equal_nan=True)
    values = E4M3.values()[:127]
    x = torch.cat([numbers(5), values, (values[1:] + values[:-1]) / 2, torch.tensor([torch.nan])])
    x = torch.cat([x, -x])
    stored = x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(E4M3.encode(x) & 127, stored & 127)
    finite = ~x.isnan()
    assert torch.equal(E4M3.encode(x)[finite], stored[finite])


@pytest.mark.parametrize("numbers_of", [E2M1, E4M3], ids=lambda item: item.name)
def test_encoding_takes_the_nearest_value_and_of_two_the_even_code(numbers_of: FloatFormat) -> None:
    values = numbers_of.values()[: 2 ** (numbers_of.bits - 1)]
    values = values[~values.isnan()]
    codes = torch.arange(len(values), dtype=torch.uint8)
    assert torch.equal(numbers_of.encode(values), codes)
    halfway = (values[1:] + values[:-1]) / 2  # exact in float32
    assert torch.equal(numbers_of.encode(halfway), (codes[:-1] + 1) // 2 * 2)
    assert torch.equal(numbers_of.encode(halfway.nextafter(values[1:])), codes[1:])
    assert torch.equal(numbers_of.encode(halfway.nextafter(values[:-1])), codes[:-1])
    x = numbers(3)
    distance = (x.clamp(-numbers_of.largest, numbers_of.largest)[:, None].abs() - values).abs()
    assert torch.equal(numbers_of.round(x).abs(), values[distance.argmin(1)])  # no tie among these
    assert torch.equal(numbers_of.round(x), numbers_of.decode(numbers_of.encode(x)))


@pytest.mark.parametrize("numbers_of", [E2M1, E4M3], ids=lambda item: item.name)
def test_encoding_saturates_and_keeps_signs(numbers_of: FloatFormat) -> None:
    sign = 2 ** (numbers_of.bits - 1)
    top = int(numbers_of.encode(torch.tensor([numbers_of.largest]))[0])
    x = torch.tensor([1e30, torch.inf, -torch.inf, -0.0, -1e-30])
    assert numbers_of.encode(x).tolist() == [top, top, top + sign, sign, sign]
    assert numbers_of.round(x)[:3].tolist() == [numbers_of.largest, numbers_of.largest, -numbers_of.largest]
    assert bool(numbers_of.round(torch.tensor([torch.nan])).isnan())
    expected = top if numbers_of.nan is None else numbers_of.nan
    assert int(numbers_of.encode(torch.tensor([torch.nan]))[0]) == expected


def test_pairs_of_fp4() -> None:
    assert fp4_values(torch.tensor([[0x91, 0x7F]], dtype=torch.uint8)).tolist() == [[0.5, -0.5, -6.0, 6.0]]


def test_exponents_of_all_codes() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    powers = exponents(codes)
    assert powers[[0, 127, 128, 254]].tolist() == [2.0**-127, 1, 2, 2.0**127]
    assert bool(powers[255].isnan())
    assert torch.equal(exponent_codes(powers), codes)


def test_exponents_round_and_saturate() -> None:
    x = torch.tensor(
        [1.0, 1.49, 1.5, 2.9, 3.0, 0.0, 1.49 * 2.0**-127, 1.5 * 2.0**-127, torch.inf, 3.4e38, -1.0, torch.nan]
    )
    assert exponent_codes(x).tolist() == [127, 127, 128, 128, 129, 0, 0, 1, 254, 254, 255, 255]


@pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="torch has no E8M0")
def test_e8m0_is_torchs() -> None:
    x = numbers(37).abs()
    x = x[x >= 2.0**-126]  # below, torch rounds 2^-127 itself up
    assert torch.equal(exponent_codes(x), x.to(torch.float8_e8m0fnu).view(torch.uint8))
