"""One measurement: an op at one shape, its gate and its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dfrot.bench.clock import Call

EXACT = 0.0
FLOATING = 1e-3  # relative error that rounding of a floating epilogue may cause
BFLOAT16 = 2.0**-8  # one rounding to bfloat16


@dataclass(frozen=True)
class ProblemShape:
    """Sizes of one measurement. n, k: output and input width of a linear (k: width of a row op); group: columns per
    weight scale, 0 = per channel. heads, kv_heads, head_dim, context: of an attention op."""

    n: int = 4096
    k: int = 4096
    rows: int = 1
    group: int = 0
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    context: int = 8192


@dataclass(frozen=True)
class Case:
    """op: name in torch.ops.dfq. gate: relative error of the op against its reference, to be at most `limit`.
    ours: its calls on rotated operands; peers: theirs. nbytes and operations: what one call has to read (and write)
    and compute; kind: bf16 or int8 arithmetic, None where memory alone counts. shown: the sizes that matter."""

    op: str
    shown: dict[str, int]
    gate: Callable[[], float]
    limit: float
    ours: Sequence[Call]
    nbytes: int
    operations: float = 0.0
    kind: str | None = None
    peers: Mapping[str, Sequence[Call]] = field(default_factory=dict)


def error(found: Any, wanted: Any) -> float:
    """Largest difference over all outputs, relative to each output's largest magnitude; inf for NaN or a wrong
    shape. Exactly 0 when everything is equal."""
    left = found if isinstance(found, (tuple, list)) else (found,)
    right = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
    return max((_error(a, b) for a, b in zip(left, right, strict=True)), default=0.0)


def _error(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    difference = float((found.double() - wanted.double()).abs().max()) if wanted.numel() else 0.0
    size = float(wanted.double().abs().max()) if wanted.numel() else 0.0
    return difference / size if size else difference
