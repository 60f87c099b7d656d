"""The ops on prepacked weights, for the bench: the same products as on the canonical layout."""

from __future__ import annotations

from typing import Any

import torch

from dfrot.bench.kernels.case import BFLOAT16, FLOATING, Case, ProblemShape, error
from dfrot.bench.kernels.cases.products import BUILDERS, linear_peers, shown, weights, work
from dfrot.bench.kernels.operands import Weight, activations, few, tokens
from dfrot_kernels import PackedWeight, PreparedWeight, ref


def prepare(stored: Weight, k: int, with_sums: bool) -> PreparedWeight:
    """In tiles."""
    packed = PackedWeight(stored.packed, stored.scale, None, 4, stored.group, (stored.packed.shape[0], k))
    return PreparedWeight.from_packed(packed, with_sums)


def w4a16_tiled_mm(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
    """Weight-only linear on bfloat16 activations."""
    x, stored = activations(shape.rows, shape.k, draw), weights(shape, draw, cover)
    ready = [prepare(one, shape.k, False) for one in stored]

    def gate() -> float:
        rows = few(shape.rows)
        return error(ready[0].linear(x)[rows], ref.w4a16_mm(x[rows].float(), *stored[0].arguments))

    ours = [lambda w=w: w.linear(x) for w in ready]
    size = stored[0].nbytes + 2 * shape.rows * (shape.k + shape.n)
    rest = linear_peers(shape, draw, cover)
    return Case("w4a16_tiled_mm", shown(shape), gate, FLOATING + BFLOAT16, ours, size, work(shape), "bf16", rest)


def w4a8_tiled_mm(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
    """Integer product of 8-bit asymmetric activations, bfloat16 out."""
    (codes, scale, zero), stored = tokens(shape.rows, shape.k, 8, draw), weights(shape, draw, cover)
    ready = [prepare(one, shape.k, True) for one in stored]

    def run(w: PreparedWeight) -> Any:
        return w.integer_linear(codes, scale, zero, None, torch.bfloat16)

    def gate() -> float:
        rows = few(shape.rows)
        wanted = ref.w4a8_mm(codes[rows], scale[rows], zero[rows], *stored[0].arguments)
        return error(run(ready[0])[rows], wanted)

    ours = [lambda w=w: run(w) for w in ready]
    size = stored[0].nbytes + shape.rows * (shape.k + 2 * shape.n)
    rest = linear_peers(shape, draw, cover)
    return Case("w4a8_tiled_mm", shown(shape), gate, BFLOAT16, ours, size, work(shape), "int8", rest)


BUILDERS.update({"w4a16_tiled_mm": w4a16_tiled_mm, "w4a8_tiled_mm": w4a8_tiled_mm})
