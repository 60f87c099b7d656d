"""Operators on rows: the online Hadamard transform, quantization per token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dfrot.bench.kernels import peers
from dfrot.bench.kernels.case import BFLOAT16, EXACT, FLOATING, Case, ProblemShape, relative_error
from dfrot.bench.kernels.cases.common import operator, random_inputs
from dfrot.bench.kernels.operands import gate_rows
from dfrot.rotation.hadamard import hadamard_plan
from dfrot_kernels.ops import references as ref

QUANTIZER = (4, False, 1.0)  # bits, symmetric, clip ratio


def hadamard(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """Online Hadamard transform of rows, of the largest order that K has."""
    spec = hadamard_plan(shape.k)
    base, op = spec.base(), operator("hadamard")
    return _row_case(
        "hadamard",
        random_inputs(shape, generator, cover),
        shape,
        lambda x: op(x, base, spec.block),
        lambda x: ref.hadamard(x.float(), base, spec.block),
        bytes_written=2,
        limit=FLOATING + BFLOAT16,
    )


def quantize_per_token(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """Dynamic asymmetric 4-bit codes per row."""
    op = operator("quantize_per_token")
    return _row_case(
        "quantize_per_token",
        random_inputs(shape, generator, cover),
        shape,
        lambda x: op(x, *QUANTIZER),
        lambda x: ref.quantize_per_token(x, *QUANTIZER),
        bytes_written=1,
        limit=EXACT,
    )


def _row_case(
    name: str,
    inputs: list[tuple[Tensor, ...]],
    shape: ProblemShape,
    run: Callable[[Tensor], Any],
    reference: Callable[[Tensor], Any],
    bytes_written: int,
    limit: float,
) -> Case:
    """An operator on bfloat16 rows of K values; its peer is a copy of them. bytes_written: per value."""

    def gate() -> float:
        rows = inputs[0][0][gate_rows(shape.rows)]
        return relative_error(run(rows), reference(rows))

    return Case(
        name,
        {"k": shape.k, "rows": shape.rows},
        gate,
        limit,
        [partial(run, x) for (x,) in inputs],
        shape.rows * shape.k * (2 + bytes_written),
        peers={"torch copy": [peers.copy(x) for (x,) in inputs]},
    )
