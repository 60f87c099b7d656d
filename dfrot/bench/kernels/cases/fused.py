"""Rows that are rotated, normed and quantized in one pass, for the bench."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dfrot.bench.kernels import peers
from dfrot.bench.kernels.case import Case, ProblemShape
from dfrot.bench.kernels.cases.products import BUILDERS, IGNORES
from dfrot.bench.kernels.operands import activations, few, ring
from dfrot.rotation.hadamard import hadamard_plan
from dfrot_kernels.ops import references as ref_fused

Tokens = tuple[Tensor, Tensor, Tensor]
EDGES = 0.01  # share of codes that sums in another order may move over a rounding edge, by one


def moved(found: Tokens, wanted: Tokens) -> float:
    """The share of codes that differ, by one; inf where one differs by more or a scale by 0.1 %."""
    distance = (found[0].int() - wanted[0].int()).abs()
    scales = (found[1] - wanted[1]).abs() <= 1e-3 * wanted[1].abs()
    if int(distance.max()) > 1 or not bool(scales.all()) or int((found[2] - wanted[2]).abs().max()) > 1:
        return float("inf")
    return float(distance.float().mean())


def _case(
    name: str,
    shape: ProblemShape,
    inputs: list[tuple[Tensor, ...]],
    run: Callable[..., Tokens],
    reference: Callable[..., Tokens],
) -> Case:
    def gate() -> float:
        rows = [x[few(shape.rows)] for x in inputs[0]]
        return moved(run(*rows), reference(*rows))

    size = shape.rows * shape.k * (2 * len(inputs[0]) + 1)
    ours = [lambda x=x: run(*x) for x in inputs]
    rest = {"torch copy": [peers.copy(x[0]) for x in inputs]}
    return Case(name, {"k": shape.k, "rows": shape.rows}, gate, EDGES, ours, size, peers=rest)


def _inputs(shape: ProblemShape, draw: torch.Generator, cover: int, each: int) -> list[tuple[Tensor, ...]]:
    count = min(64, ring(2 * each * shape.rows * shape.k, cover))
    return [tuple(activations(shape.rows, shape.k, draw) for _ in range(each)) for _ in range(count)]


def hadamard_quantize(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
    """The online rotation, then 4-bit asymmetric codes."""
    spec = hadamard_plan(shape.k)
    options = (spec.base(), spec.block, 4, False, 1.0)
    return _case(
        "hadamard_quantize",
        shape,
        _inputs(shape, draw, cover, 1),
        lambda x: torch.ops.dfq.hadamard_quantize(x, *options),
        lambda x: ref_fused.hadamard_quantize(x, *options),
    )


def rmsnorm_quantize(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
    """The norm before a linear, then 4-bit asymmetric codes."""
    options = (None, torch.ones(shape.k, dtype=torch.bfloat16), 1e-5, 4, False, 1.0)
    return _case(
        "rmsnorm_quantize",
        shape,
        _inputs(shape, draw, cover, 1),
        lambda x: torch.ops.dfq.rmsnorm_quantize(x, *options),
        lambda x: ref_fused.rmsnorm_quantize(x, *options),
    )


def silu_mul_hadamard_quantize(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
    """What stands between the MLP's linears."""
    spec = hadamard_plan(shape.k)
    options = (spec.base(), spec.block, 4, False, 1.0)
    return _case(
        "silu_mul_hadamard_quantize",
        shape,
        _inputs(shape, draw, cover, 2),
        lambda gate, up: torch.ops.dfq.silu_mul_hadamard_quantize(gate, up, *options),
        lambda gate, up: ref_fused.silu_mul_hadamard_quantize(gate, up, *options),
    )


_CASES = {
    "hadamard_quantize": hadamard_quantize,
    "rmsnorm_quantize": rmsnorm_quantize,
    "silu_mul_hadamard_quantize": silu_mul_hadamard_quantize,
}
BUILDERS.update(_CASES)
IGNORES.update(dict.fromkeys(_CASES, ("n", "group")))
