"""The key-value cache helpers: one scale per row, codes derived from the stored (float16) scale."""

from __future__ import annotations

import pytest
import torch

from dfrot_kernels.ops import references as ref

CASES = [(bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


def cache(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    x[..., 0] *= 20
    return x.to(dtype)


@pytest.mark.parametrize(("bits", "symmetric"), CASES)
@pytest.mark.parametrize("width", [1, 7, 64, 65, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_same_bits_as_the_reference(isa, bits, symmetric, width, dtype):
    x = cache(2, 3, 5, width, dtype=dtype)
    for clip in (1.0, 0.9):
        got, wanted = (f(x, bits, symmetric, clip) for f in (torch.ops.dfq.kv_quantize, ref.kv_quantize))
        for name, a, b in zip(("packed", "scale", "zero"), got, wanted, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), name
        zero = None if symmetric else got[2]
        for out in (torch.float32, torch.bfloat16, torch.float16):
            back = torch.ops.dfq.kv_dequantize(got[0], got[1], zero, width, bits, out)
            assert back.dtype == out
            assert torch.equal(back, ref.kv_dequantize(got[0], got[1], zero, width, bits, out))


@pytest.mark.parametrize(("bits", "symmetric"), CASES)
def test_round_trip_error_is_bounded_by_the_stored_step(isa, bits, symmetric):
    x = cache(4, 9, 64)
    packed, scale, zero = torch.ops.dfq.kv_quantize(x, bits, symmetric, 1.0)
    back = torch.ops.dfq.kv_dequantize(packed, scale, None if symmetric else zero, 64, bits, torch.float32)
    # half a step, half a step more for the rounded zero point, and what float16 rounding takes off the range
    limit = scale.double()[..., None] * (1.0 + 2**bits * 2.0**-11)
    assert ((back.double() - x.double()).abs() <= limit).all()


def test_zero_rows_huge_rows_and_bad_rows(isa):
    x = torch.zeros(4, 64)
    x[1, 3] = 1e9  # beyond float16 even after division: saturates, stays finite
    x[2, 63] = float("nan")
    for symmetric in (True, False):
        packed, scale, zero = torch.ops.dfq.kv_quantize(x, 4, symmetric, 1.0)
        back = torch.ops.dfq.kv_dequantize(packed, scale, None if symmetric else zero, 64, 4, torch.float32)
        assert torch.equal(back[[0, 3]], torch.zeros(2, 64))
        assert back[1].isfinite().all()
        assert back[2].isnan().all()


def test_views_and_no_rows(isa):
    x = cache(3, 8, 40).transpose(0, 1)
    for got, wanted in zip(
        torch.ops.dfq.kv_quantize(x, 4, False, 1.0), torch.ops.dfq.kv_quantize(x.clone(), 4, False, 1.0), strict=True
    ):
        assert torch.equal(got, wanted)
    packed, scale, zero = torch.ops.dfq.kv_quantize(x[:0], 4, False, 1.0)
    assert (packed.shape, scale.shape, zero.shape) == ((0, 3, 20), (0, 3), (0, 3))
    assert torch.ops.dfq.kv_dequantize(packed, scale, zero, 40, 4, torch.bfloat16).shape == (0, 3, 40)
