"""What the cases of several families share: operand rings, peers of linears, cases of operators on rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dfrot.bench.clock import Call
from dfrot.bench.kernels import peers
from dfrot.bench.kernels.case import ProblemShape
from dfrot.bench.kernels.operands import Weight, random_activations, random_weight, ring_size

# With more rows than this a product reuses its weight from the caches: two operands suffice.
MANY_ROWS = 16
MAX_INPUTS = 64  # rows are cheap to read: more inputs than this do not change a time


def operator(name: str) -> Any:
    """`torch.ops.dfq.<name>`."""
    return getattr(torch.ops.dfq, name)


def rotated_calls(
    build: Callable[[torch.Generator], tuple[Call, int]], generator: torch.Generator, cover: int
) -> list[Call]:
    """As many calls of `build` as cover `cover` bytes. build: generator -> (call, bytes of its operands)."""
    first, nbytes = build(generator)
    return [first, *(build(generator)[0] for _ in range(ring_size(nbytes, cover) - 1))]


def linear_peers(shape: ProblemShape, generator: torch.Generator, cover: int) -> dict[str, Sequence[Call]]:
    """torch's linears of the same shape."""
    cover = cover if shape.rows <= MANY_ROWS else 0
    builders = peers.linears(shape.n, shape.k, shape.rows, shape.group)
    return {name: rotated_calls(build, generator, cover) for name, build in builders.items()}


def random_weights(
    shape: ProblemShape,
    generator: torch.Generator,
    cover: int,
    make: Callable[[int, int, int, torch.Generator], Weight] = random_weight,
) -> list[Weight]:
    """Weights that cover `cover` bytes together. make: (rows, columns, group, generator) -> one of them."""
    first = make(shape.n, shape.k, shape.group, generator)
    count = ring_size(first.nbytes, cover if shape.rows <= MANY_ROWS else 0)
    return [first, *(make(shape.n, shape.k, shape.group, generator) for _ in range(count - 1))]


def random_inputs(
    shape: ProblemShape, generator: torch.Generator, cover: int, count: int = 1
) -> list[tuple[Tensor, ...]]:
    """Tuples of `count` activations bfloat16 [rows, k] that cover `cover` bytes together, MAX_INPUTS at most."""
    tuples = min(MAX_INPUTS, ring_size(2 * count * shape.rows * shape.k, cover))
    return [tuple(random_activations(shape.rows, shape.k, generator) for _ in range(count)) for _ in range(tuples)]


def linear_sizes(shape: ProblemShape) -> dict[str, int]:
    """The sizes of a linear, for reports."""
    return {"n": shape.n, "k": shape.k, "rows": shape.rows, "group": shape.group}


def linear_operations(shape: ProblemShape) -> float:
    """Operations of a product; a multiply-add counts two."""
    return 2.0 * shape.n * shape.k * shape.rows
