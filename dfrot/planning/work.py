"""Amounts of work by kind, and the cost of a stage."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WorkKind:
    """A kind of work: what is counted, and what a unit asks of a machine that was not measured."""

    unit: str
    """What is counted."""
    meaning: str
    """Where it occurs."""
    peak: str = ""
    """Which published peak bounds it: fp64, fp32, bf16, int8 (FLOP/s) or disk (bytes/s)."""
    per_unit: float = 1.0
    """FLOPs, or bytes of disk, per unit."""
    efficiency: float = 1.0
    """Share of that peak that a machine is taken to reach."""


KINDS: dict[str, WorkKind] = {
    "products64": WorkKind("FLOPs", "float64 products: fusing rotations", "fp64", efficiency=0.5),
    "products32": WorkKind("FLOPs", "float32 products: blocks, Hessians, updates of GPTQ", "fp32", efficiency=0.5),
    "plain32": WorkKind(
        "FLOPs", "float32 products of rotate, by torch's own choice of library", "fp32", efficiency=0.5
    ),
    "attention": WorkKind("FLOPs", "attention, with its softmax, float32", "fp32", efficiency=0.3),
    "plain_attention": WorkKind("FLOPs", "attention of rotate", "fp32", efficiency=0.3),
    "products16": WorkKind(
        "FLOPs", "bfloat16 products: the 16-bit model beside the quantized one", "bf16", efficiency=0.4
    ),
    "integers": WorkKind("FLOPs", "integer products of packed linears", "int8", efficiency=0.3),
    "factor64": WorkKind("FLOPs", "Cholesky factors, inverses and solutions, float64", "fp64", efficiency=0.2),
    "columns": WorkKind("weights", "GPTQ's loop over columns", "fp32", 400.0, 0.05),
    "search": WorkKind("weights", "the search for clip ratios", "fp32", 600.0, 0.1),
    "elements": WorkKind("values", "rounding, norms and activations, value by value", "fp32", 60.0, 0.05),
    "load": WorkKind("weights", "weights read, checked and made float32", "fp32", 40.0, 0.05),
    "read": WorkKind("bytes", "read from disk", "disk"),
    "write": WorkKind("bytes", "written to disk", "disk"),
    "start": WorkKind("starts", "imports and tokenizer"),
    "text": WorkKind("characters", "text that is tokenized"),
}
FACTOR = 2.0 / 3.0
"""FLOPs per K^3 of GPTQ's factor: a Cholesky factor and the inverse of a triangle."""
FLOPS = ("products64", "products32", "plain32", "attention", "plain_attention", "products16", "integers", "factor64")
START_SECONDS = 6.5
"""Of a command: imports, and reading the tokenizer."""
TEXT_PER_SECOND = 1.2e6
"""Characters that are tokenized."""
FIXED = {"start": 1 / START_SECONDS, "text": TEXT_PER_SECOND}
"""Units per second of what does not depend much on the machine."""


@dataclass
class Share:
    """Work that several ranks do together, in units of equal size that are not split."""

    units: int
    """How many there are."""
    work: Counter[str]
    """Amounts of all units together."""
    collected: float = 0.0
    """Bytes that a unit sends to the rank that adds it up."""
    sent: float = 0.0
    """Bytes that are sent to every rank, over all units."""
    passed_on: bool = False
    """Whether those who have got them pass them on (a broadcast), in place of one rank that sends them all."""
    exchanges: float = 0.0
    """Times that ranks wait for one another where every rank has one unit; as often more as it has more units."""


@dataclass
class StageCost:
    """What one stage costs."""

    stage: str
    """Name of the stage."""
    work: Counter[str] = field(default_factory=Counter)
    """Amounts by kind."""
    parts: dict[str, int] = field(default_factory=dict)
    """What needs memory, bytes: the largest of them comes on top of `BASE_MEMORY`."""
    disk: int = 0
    """Bytes of the result."""
    scratch: int = 0
    """Bytes on the way that are deleted again."""
    notes: list[str] = field(default_factory=list)
    """What is not counted."""
    shares: list[Share] = field(default_factory=list)
    """What of the work several ranks share; the rest one of them does, or each for itself."""

    @contextlib.contextmanager
    def shared(
        self,
        units: float,
        collected: float = 0.0,
        sent: float = 0.0,
        exchanges: float = 1.0,
        loads: bool = True,
        passed_on: bool = False,
    ) -> Iterator[None]:
        """Let ranks share the work that is counted inside; as in `Share`. loads: whether reading weights is part of it,
        rather than done by every rank."""
        before = Counter(self.work)
        yield
        added = Counter({kind: amount - before[kind] for kind, amount in self.work.items() if amount != before[kind]})
        if not loads:
            for kind in ("load", "read"):
                added.pop(kind, None)
        self.shares.append(Share(max(1, math.ceil(units)), added, collected, sent, passed_on, exchanges))

    def add(self, **amounts: float) -> None:
        """Count work, by kind."""
        for kind, amount in amounts.items():
            if kind not in KINDS:
                raise KeyError(kind)
            self.work[kind] += amount  # type: ignore[assignment]

    @property
    def memory(self) -> int:
        """Peak resident bytes."""
        return BASE_MEMORY + max(self.parts.values(), default=0)

    @property
    def flops(self) -> float:
        """Additions and multiplications of all products and factors."""
        return float(sum(self.work[kind] for kind in FLOPS))

    def to_dict(self) -> dict[str, Any]:
        """JSON, without times."""
        return {
            "stage": self.stage,
            "disk_bytes": self.disk,
            "scratch_bytes": self.scratch,
            "memory_bytes": self.memory,
            "memory_parts": dict(self.parts),
            "flops": self.flops,
            "bytes_read": float(self.work["read"]),
            "bytes_written": float(self.work["write"]),
            "work": {kind: float(amount) for kind, amount in self.work.items()},
            "notes": list(self.notes),
        }


BASE_MEMORY = 560 << 20
"""Bytes of a process that has loaded torch and transformers."""
