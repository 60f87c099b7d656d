"""One measurement of a kernel: an operator at one shape, its gate and its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dfrot.bench.clock import Call

EXACT = 0.0
FLOATING = 1e-3  # relative error that rounding of a floating-point epilogue may cause
BFLOAT16 = 2.0**-8  # one rounding to bfloat16


@dataclass(frozen=True)
class ProblemShape:
    """Sizes of one measurement. An operator uses those that it has."""

    n: int = 4096
    """Output width of a linear."""
    k: int = 4096
    """Input width of a linear; width of a row for operators on rows."""
    rows: int = 1
    """Rows of activations: tokens."""
    group: int = 0
    """Columns per weight scale; 0: one scale per output channel."""
    heads: int = 32
    """Query heads."""
    kv_heads: int = 8
    """Heads of keys and values."""
    head_dim: int = 128
    """Width of a head."""
    context: int = 8192
    """Positions in the cache."""


@dataclass(frozen=True)
class Case:
    """An operator at one shape, ready to be checked and timed."""

    op: str
    """Name in torch.ops.dfq."""
    sizes: dict[str, int]
    """The sizes that matter to the operator, for reports."""
    gate: Callable[[], float]
    """Computes the error of the operator against its reference."""
    limit: float
    """The largest error that passes."""
    calls: Sequence[Call]
    """Calls of the operator on operands that differ."""
    nbytes: int
    """Bytes that a call has to read and write."""
    operations: float = 0.0
    """Arithmetic operations of a call; a multiply-add counts two."""
    kind: str | None = None
    """Arithmetic of the operations: bf16 or int8; None where only memory counts."""
    peers: Mapping[str, Sequence[Call]] = field(default_factory=dict)
    """Calls of other implementations, by name."""


Builder = Callable[[ProblemShape, torch.Generator, int], Case]
"""(shape, source of random operands, bytes of memory that the operands of all calls must cover) -> Case."""


def relative_error(output: Any, expected: Any) -> float:
    """Largest difference, relative to each expected tensor's largest magnitude; inf for NaN or a wrong shape.

    output, expected: tensors, or tuples of tensors. Exactly 0 when everything is equal."""
    outputs = output if isinstance(output, (tuple, list)) else (output,)
    wanted = expected if isinstance(expected, (tuple, list)) else (expected,)
    return max((_relative_error(a, b) for a, b in zip(outputs, wanted, strict=True)), default=0.0)


def _relative_error(output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape or not bool(torch.isfinite(output).all()):
        return float("inf")
    difference = float((output.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    magnitude = float(expected.double().abs().max()) if expected.numel() else 0.0
    return difference / magnitude if magnitude else difference
