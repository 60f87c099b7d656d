from __future__ import annotations

import math

import pytest
import torch

from dfrot.errors import UnsupportedError
from dfrot.rotation.finite_field import jacobsthal, prime_power
from dfrot.rotation.hadamard import (
    hadamard_matrix,
    hadamard_plan,
    hadamard_transform,
    random_orthogonal,
    randomized_hadamard,
)
from dfrot.rotation.hadamard_bases import base_matrix, constructible
from dfrot.rotation.online import HadamardSpec

ORDERS = [1, 2, 4, 12, 20, 28, 36, 40, 44, 52, 60, 68, 76, 84, 100, 108, 136, 140, 148, 152, 168, 172, 176, 200, 684]
# intermediate size: (base, power of two)
TABLE = {
    4864: (76, 64),
    5632: (44, 128),
    6912: (108, 64),
    8960: (140, 64),
    9728: (76, 128),
    10944: (684, 16),
    11008: (172, 64),
    12288: (12, 1024),
    13824: (108, 128),
    14336: (28, 512),
    28672: (28, 1024),
    17408: (68, 256),
    17920: (140, 128),
    18944: (148, 128),
    21504: (84, 256),
    25600: (100, 256),
    27648: (108, 256),
    29568: (924, 32),
    768: (12, 64),
    96: (12, 8),
    44: (44, 1),
}
HIDDEN = [576, 896, 1152, 1536, 2304, 2560, 3072, 3584, 3840, 5120, 5376, 6144, 2048, 4096, 8192]


@pytest.mark.parametrize("order", ORDERS)
def test_bases_are_hadamard(order: int) -> None:
    base = base_matrix(order)
    assert base.shape == (order, order)
    assert base.dtype == torch.float64
    assert bool((base.abs() == 1).all())
    assert torch.equal(base @ base.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("size", TABLE)
def test_plan_covers_the_known_intermediate_sizes(size: int) -> None:
    spec = hadamard_plan(size)
    assert (spec.bases, spec.block) == ((TABLE[size][0],), size)
    assert math.prod(spec.bases) * TABLE[size][1] == size


@pytest.mark.parametrize("size", HIDDEN)
def test_plan_covers_the_known_hidden_sizes_at_full_width(size: int) -> None:
    assert hadamard_plan(size).block == size


def test_every_size_has_a_plan_that_divides_it() -> None:
    for size in range(1, 300):
        spec = hadamard_plan(size)
        assert size % spec.block == 0
        odd = math.prod(spec.bases)
        assert spec.block % odd == 0
        assert (spec.block // odd).bit_count() == 1


def test_sizes_without_construction_fall_back_to_blocks() -> None:
    assert not constructible(92)
    spec = hadamard_plan(92)
    assert spec.block < 92
    assert torch.allclose(
        randomized_hadamard(92, 0) @ randomized_hadamard(92, 0).T, torch.eye(92, dtype=torch.float64), atol=1e-14
    )


def test_products_of_bases_serve_what_no_single_base_can() -> None:
    sizes = [n for n in range(1700, 2000, 4) if len(hadamard_plan(n, max_base=2000).bases) > 1]
    assert sizes
    for size in sizes:
        spec = hadamard_plan(size, max_base=2000)
        assert not constructible(math.prod(spec.bases))
        h = hadamard_matrix(spec)
        assert (h @ h.T - torch.eye(spec.block, dtype=torch.float64)).abs().max() < 1e-12


@pytest.mark.parametrize(("size", "block"), [(768, 100), (768, 0), (768, -4), (92, 92), (768, 1536)])
def test_impossible_blocks_are_refused(size: int, block: int) -> None:
    with pytest.raises(UnsupportedError, match=f"Hadamard block {block} for a width of {size}"):
        hadamard_plan(size, block)


def test_explicit_block_is_taken() -> None:
    assert hadamard_plan(11008, 128) == HadamardSpec(11008, 128, ())
    assert hadamard_plan(96, 24) == HadamardSpec(96, 24, (12,))


@pytest.mark.parametrize("order", [6, 10, 92, 116])
def test_unknown_orders_are_refused(order: int) -> None:
    with pytest.raises(UnsupportedError, match=f"order {order}"):
        base_matrix(order)


@pytest.mark.parametrize("size", [8, 44, 96, 172, 768])
def test_matrix_is_orthogonal_and_even(size: int) -> None:
    h = hadamard_matrix(hadamard_plan(size))
    assert (h @ h.T - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-13
    assert torch.allclose(h.abs(), torch.full_like(h, size**-0.5), rtol=1e-15)


@pytest.mark.parametrize("make", [randomized_hadamard, random_orthogonal])
def test_random_rotations_are_orthogonal_and_seeded(make) -> None:  # type: ignore[no-untyped-def]
    first, again, other = make(96, 3), make(96, 3), make(96, 4)
    assert first.dtype == torch.float64
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(make(96, (3, 1)), make(96, (3, 2)))
    assert (first.T @ first - torch.eye(96, dtype=torch.float64)).abs().max() < 1e-13


def test_random_orthogonal_does_not_depend_on_the_thread_count() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = random_orthogonal(128, 0)
        torch.set_num_threads(2)
        assert torch.equal(one, random_orthogonal(128, 0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_random_orthogonal_is_spread_evenly() -> None:
    entries = random_orthogonal(128, 1) * 128**0.5
    assert abs(float(entries.mean())) < 0.02
    assert float((entries**4).mean()) == pytest.approx(3 * 128 / 130, rel=0.1)  # kurtosis of Haar entries


@pytest.mark.parametrize("q", [9, 25, 27, 49, 7, 13])
def test_jacobsthal(q: int) -> None:
    matrix_q = jacobsthal(q)
    eye, ones = torch.eye(q, dtype=torch.float64), torch.ones(q, q, dtype=torch.float64)
    assert torch.equal(matrix_q @ matrix_q.T, q * eye - ones)
    assert torch.equal(matrix_q.T, matrix_q if q % 4 == 1 else -matrix_q)


def test_prime_powers() -> None:
    assert [q for q in range(2, 33) if prime_power(q)] == [
        *(2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32)
    ]


@pytest.mark.parametrize(
    ("size", "block"), [(96, None), (44, None), (64, None), (172, None), (96, 8), (96, 24), (1, 1)]
)
def test_transform_is_the_block_diagonal_matrix(size: int, block: int | None) -> None:
    spec = hadamard_plan(size, block)
    x = torch.randn(5, 3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    full = torch.block_diag(*[hadamard_matrix(spec)] * (size // spec.block))
    assert (hadamard_transform(x, spec) - x @ full).abs().max() < 1e-13
    assert torch.equal(x, before)
