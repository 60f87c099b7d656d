"""Operators that rotate, normalise or activate rows and quantize them in one pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dfrot.bench.kernels import peers
from dfrot.bench.kernels.case import Case, ProblemShape
from dfrot.bench.kernels.cases.common import random_inputs
from dfrot.bench.kernels.cases.rows import QUANTIZER
from dfrot.bench.kernels.operands import gate_rows
from dfrot.rotation.hadamard import hadamard_plan
from dfrot_kernels.ops import references as ref_fused

Codes = tuple[Tensor, Tensor, Tensor]
"""codes int8 [M, K], scale float32 [M], zero int32 [M]."""

# Share of codes that may differ by one: another order of sums moves values over a rounding edge.
MAX_SHARE_DIFFERENT = 0.01
SCALE_TOLERANCE = 1e-3  # relative


def share_of_different_codes(output: Codes, expected: Codes) -> float:
    """The share of codes that differ by one; inf where a code or zero differs by more, or a scale by 0.1 %."""
    distance = (output[0].int() - expected[0].int()).abs()
    scales = (output[1] - expected[1]).abs() <= SCALE_TOLERANCE * expected[1].abs()
    if int(distance.max()) > 1 or not bool(scales.all()) or int((output[2] - expected[2]).abs().max()) > 1:
        return float("inf")
    return float(distance.float().mean())


def hadamard_quantize(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """The online rotation, then 4-bit asymmetric codes."""
    spec = hadamard_plan(shape.k)
    options = (spec.base(), spec.block, *QUANTIZER)
    return _case(
        "hadamard_quantize",
        shape,
        random_inputs(shape, generator, cover),
        lambda x: torch.ops.dfq.hadamard_quantize(x, *options),
        lambda x: ref_fused.hadamard_quantize(x, *options),
    )


def rmsnorm_quantize(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """The norm before a linear, then 4-bit asymmetric codes."""
    options = (None, torch.ones(shape.k, dtype=torch.bfloat16), 1e-5, *QUANTIZER)
    return _case(
        "rmsnorm_quantize",
        shape,
        random_inputs(shape, generator, cover),
        lambda x: torch.ops.dfq.rmsnorm_quantize(x, *options),
        lambda x: ref_fused.rmsnorm_quantize(x, *options),
    )


def silu_mul_hadamard_quantize(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """Everything between the linears of the MLP: silu(gate) * up, the online rotation, 4-bit asymmetric codes."""
    spec = hadamard_plan(shape.k)
    options = (spec.base(), spec.block, *QUANTIZER)
    return _case(
        "silu_mul_hadamard_quantize",
        shape,
        random_inputs(shape, generator, cover, 2),
        lambda gate, up: torch.ops.dfq.silu_mul_hadamard_quantize(gate, up, *options),
        lambda gate, up: ref_fused.silu_mul_hadamard_quantize(gate, up, *options),
    )


def _case(
    name: str,
    shape: ProblemShape,
    inputs: list[tuple[Tensor, ...]],
    run: Callable[..., Codes],
    reference: Callable[..., Codes],
) -> Case:
    """An operator on bfloat16 rows with int8 codes as output; its peer is a copy of the first input."""

    def gate() -> float:
        rows = [x[gate_rows(shape.rows)] for x in inputs[0]]
        return share_of_different_codes(run(*rows), reference(*rows))

    return Case(
        name,
        {"k": shape.k, "rows": shape.rows},
        gate,
        MAX_SHARE_DIFFERENT,
        [partial(run, *x) for x in inputs],
        shape.rows * shape.k * (2 * len(inputs[0]) + 1),
        peers={"torch copy": [peers.copy(x[0]) for x in inputs]},
    )
