"""Products with weights in the canonical layout."""

from __future__ import annotations

from functools import partial

import torch

from dfrot.bench.kernels.case import BFLOAT16, FLOATING, Builder, Case, ProblemShape, relative_error
from dfrot.bench.kernels.cases import common
from dfrot.bench.kernels.cases.common import linear_operations, linear_peers, linear_sizes, random_weights
from dfrot.bench.kernels.operands import (
    gate_rows,
    random_activations,
    random_bytes,
    random_codes,
)
from dfrot_kernels.ops import references as ref


def w4a16_mm(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """Weight-only linear on bfloat16 activations."""
    op = common.operator("w4a16_mm")
    x, weights = random_activations(shape.rows, shape.k, generator), random_weights(shape, generator, cover)

    def gate() -> float:
        rows = gate_rows(shape.rows)
        expected = ref.w4a16_mm(x[rows].float(), *weights[0].arguments)
        return relative_error(op(x, *weights[0].arguments)[rows], expected)

    return Case(
        "w4a16_mm",
        linear_sizes(shape),
        gate,
        FLOATING + BFLOAT16,
        [partial(op, x, *weight.arguments) for weight in weights],
        weights[0].nbytes + 2 * shape.rows * (shape.k + shape.n),
        linear_operations(shape),
        "bf16",
        linear_peers(shape, generator, cover),
    )


def w8a16_mm(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """A head of 8 bits on bfloat16 activations."""
    op = common.operator("w8a16_mm")
    x = random_activations(shape.rows, shape.k, generator)
    weights = random_weights(shape, generator, cover, random_bytes)
    first = weights[0]

    def gate() -> float:
        rows = gate_rows(shape.rows)
        expected = ref.w8a16_mm(x[rows].float(), first.packed, first.scale, first.group)
        return relative_error(op(x, first.packed, first.scale, first.group)[rows], expected)

    return Case(
        "w8a16_mm",
        linear_sizes(shape),
        gate,
        FLOATING + BFLOAT16,
        [partial(op, x, weight.packed, weight.scale, weight.group) for weight in weights],
        first.nbytes + 2 * shape.rows * (shape.k + shape.n),
        linear_operations(shape),
        "bf16",
        linear_peers(shape, generator, cover),
    )


def integer_product(name: str, bits: int) -> Builder:
    """The builder of `name`: 4-bit weights times activations of `bits` bits, float32 out."""

    def build(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
        op = common.operator(name)
        activations = random_codes(shape.rows, shape.k, bits, generator)
        weights = random_weights(shape, generator, cover)

        def gate() -> float:
            rows = gate_rows(shape.rows)
            codes, scale, zero = (part[rows] for part in activations)
            expected = ref.w4a8_mm(codes, scale, zero, *weights[0].arguments)
            return relative_error(op(*activations, *weights[0].arguments)[rows], expected)

        return Case(
            name,
            linear_sizes(shape),
            gate,
            FLOATING,
            [partial(op, *activations, *weight.arguments) for weight in weights],
            weights[0].nbytes + shape.rows * (shape.k + 4 * shape.n),
            linear_operations(shape),
            "int8",
            linear_peers(shape, generator, cover),
        )

    return build
