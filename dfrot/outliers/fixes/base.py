"""The interface of a fix. A fix reads a checkpoint and its report and says which tensors change; it writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from dfrot.arch import BoundArch
from dfrot.outliers.measure.subject import Subject

Edit = Callable[[Tensor], Tensor]
"""A tensor as stored -> float32 (or the stored dtype) of the same shape; must not change its argument."""


@dataclass(frozen=True)
class Context:
    """What a fix may read."""

    subject: Subject
    """The checkpoint: its weights, and a way to run it."""
    report: dict[str, Any]
    """The report of `dfq outliers` on it."""
    tokens: Tensor
    """The measured tokens, int64 [windows, S]."""

    @property
    def arch(self) -> BoundArch:
        """The checkpoint's architecture."""
        return self.subject.arch


@dataclass
class Change:
    """What a fix changes."""

    tensors: dict[str, list[Edit]] = field(default_factory=dict)
    """Tensor -> its edits, in order."""
    resets: list[Any] = field(default_factory=list)
    """Entries that the runtime sets to a constant (`quant.resets.Reset`)."""
    prefix: list[int] = field(default_factory=list)
    """Token ids that every text shall begin with."""
    exact: bool = False
    """Whether the function is preserved up to rounding."""
    account: dict[str, Any] = field(default_factory=dict)
    """JSON: what was changed and why."""

    def edit(self, name: str, edit: Edit) -> None:
        """Add an edit of tensor `name`."""
        self.tensors.setdefault(name, []).append(edit)


class Fix(Protocol):
    """One way to remove one kind of outlier."""

    name: str
    """What `NAME:MODE` calls it."""
    modes: tuple[str, ...]
    """Its variants; the first is the default."""

    def plan(self, context: Context, mode: str) -> Change:
        """The change in this mode. Raises UnsupportedError where this checkpoint or its report leaves nothing to do."""


def scaled_columns(factor: Tensor) -> Edit:
    """Multiply column c of a weight [N, K] by factor [K]."""
    return lambda weight: weight.float() * factor


def scaled_rows(factor: Tensor) -> Edit:
    """Multiply row r of a weight [N, K] (or entry r of a bias [N]) by factor [N]."""
    return lambda weight: weight.float() * (factor[:, None] if weight.ndim == 2 else factor)


def with_entries(entries: list[tuple[int, int, float]]) -> Edit:
    """Set weight[row, column] to values. entries: (row, column, value)."""

    def edit(weight: Tensor) -> Tensor:
        out = weight.clone()
        for row, column, value in entries:
            out[row, column] = value
        return out

    return edit


def with_factors(factors: dict[tuple[int, int], float]) -> Edit:
    """Multiply weight[row, column] by factors. factors: (row, column) -> factor."""

    def edit(weight: Tensor) -> Tensor:
        out = weight.float().clone()
        for (row, column), factor in factors.items():
            out[row, column] *= factor
        return out

    return edit


def replaced_by(value: Tensor) -> Edit:
    """The tensor becomes `value`."""
    return lambda _: value
