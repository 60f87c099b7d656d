"""pack, unpack and dequantize: exact in both directions, for every width and odd lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfrot_kernels.ops import references as ref

BITS = range(2, 9)


def bit_string(row: list[int], bits: int) -> bytes:
    """The definition: code j occupies bits [j * bits, (j + 1) * bits), least significant first."""
    total = sum(code << (j * bits) for j, code in enumerate(row))
    return total.to_bytes((len(row) * bits + 7) // 8, "little")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("k", [1, 7, 63, 64, 65, 1000])
def test_pack_is_the_little_endian_bit_string_and_unpack_its_inverse(isa, bits, k):
    codes = torch.randint(0, 2**bits, (5, k), dtype=torch.uint8, generator=torch.Generator().manual_seed(k))
    packed = torch.ops.dfq.pack(codes, bits)
    assert [bytes(row.tolist()) for row in packed] == [bit_string(row.tolist(), bits) for row in codes]
    assert torch.equal(torch.ops.dfq.unpack(packed, bits, k), codes)
    assert torch.equal(ref.pack(codes, bits), packed)
    assert torch.equal(ref.unpack(packed, bits, k), codes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(2, 8), st.lists(st.integers(0, 255), min_size=1, max_size=90))
def test_any_row_survives_the_round_trip(bits, row):
    codes = torch.tensor([[code % 2**bits for code in row]], dtype=torch.uint8)
    assert torch.equal(torch.ops.dfq.unpack(torch.ops.dfq.pack(codes, bits), bits, len(row)), codes)


@pytest.mark.parametrize(("bits", "group"), [(2, 0), (3, 32), (4, 0), (4, 32), (4, 7), (5, 128), (8, 0), (8, 64)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k", [1, 63, 130])
def test_dequantize_is_exact(isa, example, bits, group, symmetric, k):
    e = example(9, k, group, symmetric, bits)
    w = e.weight
    dense = torch.ops.dfq.dequantize(w.packed, w.scale, w.zero, bits, k, group)
    assert dense.dtype == torch.float32
    assert torch.equal(dense.double(), e.exact())
    assert torch.equal(w.codes(), e.codes)
    assert torch.equal(w.dequantize(torch.bfloat16), e.exact().to(torch.bfloat16))


def test_rows_that_are_not_contiguous_or_aligned(isa):
    wide = torch.randint(0, 16, (6, 203), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    view = wide[::2, 1::3]
    packed = torch.ops.dfq.pack(view, 4)
    assert torch.equal(packed, torch.ops.dfq.pack(view.clone(), 4))
    storage = torch.zeros(packed.numel() + 1, dtype=torch.uint8)
    shifted = storage[1:].view_as(packed).copy_(packed)
    assert torch.equal(torch.ops.dfq.unpack(shifted, 4, view.shape[1]), view)


def test_no_rows(isa):
    assert torch.ops.dfq.pack(torch.empty(0, 9, dtype=torch.uint8), 3).shape == (0, 4)
    assert torch.ops.dfq.unpack(torch.empty(0, 4, dtype=torch.uint8), 3, 9).shape == (0, 9)
