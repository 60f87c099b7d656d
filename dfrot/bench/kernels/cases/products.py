"""Every op that the bench knows how to feed: name in torch.ops.dfq -> builder of a Case.

An op enters the bench by one function here, or in a module of its family that adds to BUILDERS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dfrot.bench.clock import Call
from dfrot.bench.kernels import peers
from dfrot.bench.kernels.case import BFLOAT16, EXACT, FLOATING, Case, ProblemShape, error
from dfrot.bench.kernels.operands import Weight, activations, few, ring, tokens, weight
from dfrot_kernels.ops import references as ref

Builder = Callable[
    [ProblemShape, torch.Generator, int], Case
]  # shape, source of random operands, bytes a ring must cover
MANY_ROWS = 16  # above, weights are reused from the caches: two operands are enough to rotate


def _op(name: str) -> Any:
    return getattr(torch.ops.dfq, name)


def rotated(build: Callable[[torch.Generator], tuple[Call, int]], draw: torch.Generator, cover: int) -> list[Call]:
    """As many calls of `build` as cover `cover` bytes."""
    first, nbytes = build(draw)
    return [first, *(build(draw)[0] for _ in range(ring(nbytes, cover) - 1))]


def linear_peers(shape: ProblemShape, draw: torch.Generator, cover: int) -> dict[str, Sequence[Call]]:
    cover = cover if shape.rows <= MANY_ROWS else 0
    found = peers.linears(shape.n, shape.k, shape.rows, shape.group)
    return {name: rotated(build, draw, cover) for name, build in found.items()}


def weights(shape: ProblemShape, draw: torch.Generator, cover: int) -> list[Weight]:
    first = weight(shape.n, shape.k, shape.group, draw)
    count = ring(first.nbytes, cover if shape.rows <= MANY_ROWS else 0)
    return [first, *(weight(shape.n, shape.k, shape.group, draw) for _ in range(count - 1))]


def shown(shape: ProblemShape) -> dict[str, int]:
    return {"n": shape.n, "k": shape.k, "rows": shape.rows, "group": shape.group}


def work(shape: ProblemShape) -> float:
    return 2.0 * shape.n * shape.k * shape.rows


def w4a16_mm(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
    """Weight-only linear on bfloat16 activations, canonical layout."""
    op = _op("w4a16_mm")
    x, stored = activations(shape.rows, shape.k, draw), weights(shape, draw, cover)

    def gate() -> float:
        rows = few(shape.rows)
        return error(op(x, *stored[0].arguments)[rows], ref.w4a16_mm(x[rows].float(), *stored[0].arguments))

    ours = [lambda w=w: op(x, *w.arguments) for w in stored]
    rest = linear_peers(shape, draw, cover)
    size = stored[0].nbytes + 2 * shape.rows * (shape.k + shape.n)
    return Case("w4a16_mm", shown(shape), gate, FLOATING + BFLOAT16, ours, size, work(shape), "bf16", rest)


def _integer(name: str, bits: int) -> Builder:
    def build(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
        op = _op(name)
        codes, stored = tokens(shape.rows, shape.k, bits, draw), weights(shape, draw, cover)

        def gate() -> float:
            rows = few(shape.rows)
            wanted = ref.w4a8_mm(codes[0][rows], codes[1][rows], codes[2][rows], *stored[0].arguments)
            return error(op(*codes, *stored[0].arguments)[rows], wanted)

        ours = [lambda w=w: op(*codes, *w.arguments) for w in stored]
        rest = linear_peers(shape, draw, cover)
        size = stored[0].nbytes + shape.rows * (shape.k + 4 * shape.n)
        return Case(name, shown(shape), gate, FLOATING, ours, size, work(shape), "int8", rest)

    return build


def _rows(name: str, run: Callable[[torch.Tensor], Any], wanted: Callable[[torch.Tensor], Any], written: float,
          limit: float) -> Builder:  # fmt: skip
    """An op on rows of K values: its peer is a copy of the same bfloat16 rows. written: bytes per value."""

    def build(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
        count = ring(2 * shape.rows * shape.k, cover)
        inputs = [activations(shape.rows, shape.k, draw) for _ in range(min(count, 64))]

        def gate() -> float:
            picked = inputs[0][few(shape.rows)]
            return error(run(picked), wanted(picked))

        ours = [lambda x=x: run(x) for x in inputs]
        rest = {"torch copy": [peers.copy(x) for x in inputs]}
        size = int(shape.rows * shape.k * (2 + written))
        return Case(name, {"k": shape.k, "rows": shape.rows}, gate, limit, ours, size, peers=rest)

    return build


def hadamard(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
    """Online Hadamard transform of rows; the order is the largest that K has."""
    from dfrot.rotation.hadamard import hadamard_plan

    spec = hadamard_plan(shape.k)
    base, op = spec.base(), _op("hadamard")
    build = _rows("hadamard", lambda x: op(x, base, spec.block), lambda x: ref.hadamard(x.float(), base, spec.block),
                  2, FLOATING + BFLOAT16)  # fmt: skip
    return build(shape, draw, cover)


def quantize_per_token(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
    """Dynamic asymmetric 4-bit codes per row."""
    op = _op("quantize_per_token")
    build = _rows("quantize_per_token", lambda x: op(x, 4, False, 1.0),
                  lambda x: ref.quantize_per_token(x, 4, False, 1.0), 1, EXACT)  # fmt: skip
    return build(shape, draw, cover)


# sizes that an op does not have: it is measured once however many of them are asked for
IGNORES: dict[str, tuple[str, ...]] = {"hadamard": ("n", "group"), "quantize_per_token": ("n", "group")}

BUILDERS: dict[str, Builder] = {
    "w4a16_mm": w4a16_mm,
    "w4a8_mm": _integer("w4a8_mm", 8),
    "w4a4_mm": _integer("w4a4_mm", 4),
    "hadamard": hadamard,
    "quantize_per_token": quantize_per_token,
}
