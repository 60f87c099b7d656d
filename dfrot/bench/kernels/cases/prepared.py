"""Products with prepared (tiled) weights: the same as on the canonical layout."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from dfrot.bench.kernels.case import BFLOAT16, FLOATING, Case, ProblemShape, relative_error
from dfrot.bench.kernels.cases.common import linear_operations, linear_peers, linear_sizes, random_weights
from dfrot.bench.kernels.operands import Weight, gate_rows, random_activations, random_codes
from dfrot_kernels import PackedWeight, PreparedWeight
from dfrot_kernels.ops import references as ref


def prepare(weight: Weight, k: int, with_sums: bool) -> PreparedWeight:
    """The weight [N, k] in tiles; with_sums: with the row sums that integer products need."""
    packed = PackedWeight(weight.packed, weight.scale, None, 4, weight.group, (weight.packed.shape[0], k))
    return PreparedWeight.from_packed(packed, with_sums)


def w4a16_tiled_mm(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """Weight-only linear on bfloat16 activations."""
    x, weights = random_activations(shape.rows, shape.k, generator), random_weights(shape, generator, cover)
    prepared = [prepare(weight, shape.k, False) for weight in weights]

    def gate() -> float:
        rows = gate_rows(shape.rows)
        return relative_error(prepared[0].linear(x)[rows], ref.w4a16_mm(x[rows].float(), *weights[0].arguments))

    return Case(
        "w4a16_tiled_mm",
        linear_sizes(shape),
        gate,
        FLOATING + BFLOAT16,
        [partial(weight.linear, x) for weight in prepared],
        weights[0].nbytes + 2 * shape.rows * (shape.k + shape.n),
        linear_operations(shape),
        "bf16",
        linear_peers(shape, generator, cover),
    )


def w4a8_tiled_mm(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """Integer product of 8-bit asymmetric activations, bfloat16 out."""
    codes, scale, zero = random_codes(shape.rows, shape.k, 8, generator)
    weights = random_weights(shape, generator, cover)
    prepared = [prepare(weight, shape.k, True) for weight in weights]

    def run(weight: PreparedWeight) -> Any:
        return weight.integer_linear(codes, scale, zero, None, torch.bfloat16)

    def gate() -> float:
        rows = gate_rows(shape.rows)
        expected = ref.w4a8_mm(codes[rows], scale[rows], zero[rows], *weights[0].arguments)
        return relative_error(run(prepared[0])[rows], expected)

    return Case(
        "w4a8_tiled_mm",
        linear_sizes(shape),
        gate,
        BFLOAT16,
        [partial(run, weight) for weight in prepared],
        weights[0].nbytes + shape.rows * (shape.k + 2 * shape.n),
        linear_operations(shape),
        "int8",
        linear_peers(shape, generator, cover),
    )
