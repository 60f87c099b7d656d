"""Per-token quantization: the same bits as the reference, and the properties the reference itself must have."""

from __future__ import annotations

import pytest
import torch

from dfrot_kernels.ops import references as ref

CASES = [(bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


def rows(m: int, k: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed + k)
    x = torch.randn(m, k, generator=g) * torch.logspace(-3, 3, m)[:, None]
    x[:, 0] *= 30
    return x


@pytest.mark.parametrize(("bits", "symmetric"), CASES)
@pytest.mark.parametrize("k", [1, 7, 63, 65, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_same_bits_as_the_reference(isa, bits, symmetric, k, dtype):
    x = rows(5, k).to(dtype)
    for clip in (1.0, 0.85):
        q, scale, zero = torch.ops.dfq.quantize_per_token(x, bits, symmetric, clip)
        wanted = ref.quantize_per_token(x, bits, symmetric, clip)
        assert (q.dtype, scale.dtype, zero.dtype) == (torch.int8, torch.float32, torch.int32)
        assert torch.equal(scale, wanted[1])
        assert torch.equal(zero, wanted[2])
        assert torch.equal(q, wanted[0])


@pytest.mark.parametrize(("bits", "symmetric"), CASES)
def test_error_is_at_most_half_a_step_and_codes_are_in_range(isa, bits, symmetric):
    x = rows(9, 333)
    q, scale, zero = torch.ops.dfq.quantize_per_token(x, bits, symmetric, 1.0)
    half = 2 ** (bits - 1)
    assert q.min() >= (-half + 1 if symmetric else -half)
    assert q.max() <= half - 1
    back = scale.double()[:, None] * (q.double() - zero.double()[:, None])
    # the rounded zero point may cost one more half step at the ends of the range
    limit = (0.5 if symmetric else 1.0) * scale.double()[:, None] * (1 + 1e-5)
    assert ((x.double() - back).abs() <= limit).all()
    if symmetric:
        assert not zero.any()


def test_rounding_is_half_to_even(isa):
    x = torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])  # scale 1
    q, scale, _ = torch.ops.dfq.quantize_per_token(x, 4, True, 1.0)
    assert scale.item() == 1
    assert q.tolist() == [[7, 0, 2, 2, 0, -2, -2]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_zeros_have_scale_one(isa, symmetric):
    q, scale, zero = torch.ops.dfq.quantize_per_token(torch.zeros(3, 17), 4, symmetric, 1.0)
    assert (scale == 1).all()
    assert torch.equal((q - zero[:, None]) * scale[:, None], torch.zeros(3, 17))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 40, 64])
def test_a_row_with_nan_or_inf_is_visible_and_stays_alone(isa, symmetric, bad, place):
    x = rows(3, 65)
    x[1, place] = bad
    q, scale, zero = torch.ops.dfq.quantize_per_token(x, 4, symmetric, 1.0)
    assert scale.isnan().tolist() == [False, True, False]
    assert not q[1].any()
    assert zero[1] == 0
    clean = torch.ops.dfq.quantize_per_token(x[::2], 4, symmetric, 1.0)
    assert torch.equal(q[::2], clean[0])


def test_views_and_no_rows(isa):
    x = rows(8, 130)
    view = x[1::2, 3::2]
    for got, wanted in zip(
        torch.ops.dfq.quantize_per_token(view, 4, False, 1.0),
        torch.ops.dfq.quantize_per_token(view.clone(), 4, False, 1.0),
        strict=True,
    ):
        assert torch.equal(got, wanted)
    q, scale, zero = torch.ops.dfq.quantize_per_token(x[:0], 4, True, 1.0)
    assert (q.shape, scale.shape, zero.shape) == ((0, 130), (0,), (0,))
