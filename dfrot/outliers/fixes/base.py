"""The interface of a fix: look at a checkpoint and its report, say which tensors become what. It writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from dfrot.arch import BoundArch
from dfrot.outliers.measure.subject import Subject

Edit = Callable[[Tensor], Tensor]
"""A tensor as stored -> float32 (or stored dtype) of the same shape; must not change its argument."""


@dataclass(frozen=True)
class Context:
    """What a fix may look at: the checkpoint (weights and a way to run it), its report, and the measured tokens int64
    [windows, S]."""

    subject: Subject
    report: dict[str, Any]
    tokens: Tensor

    @property
    def arch(self) -> BoundArch:
        return self.subject.arch


@dataclass
class Change:
    """tensors: name -> edits in order. resets: entries that the runtime puts to a constant (`quant.resets.Reset`).
    prefix: token ids every text shall begin with. exact: the function is preserved up to rounding. account: JSON, what
    was changed and why."""

    tensors: dict[str, list[Edit]] = field(default_factory=dict)
    resets: list[Any] = field(default_factory=list)
    prefix: list[int] = field(default_factory=list)
    exact: bool = False
    account: dict[str, Any] = field(default_factory=dict)

    def edit(self, name: str, edit: Edit) -> None:
        """Add one edit of a tensor."""
        self.tensors.setdefault(name, []).append(edit)


class Fix(Protocol):
    """One way to remove one kind of outlier, in one or more modes."""

    name: str
    modes: tuple[str, ...]

    def plan(self, context: Context, mode: str) -> Change:
        """Raises UnsupportedError where this checkpoint or this report gives it nothing to work on."""


def scaled_columns(factor: Tensor) -> Edit:
    """Multiply column c of a weight [N, K] by factor [K]."""
    return lambda weight: weight.float() * factor


def scaled_rows(factor: Tensor) -> Edit:
    """Multiply row r of a weight [N, K] (or entry r of a bias [N]) by factor [N]."""
    return lambda weight: weight.float() * (factor[:, None] if weight.ndim == 2 else factor)


def with_entries(places: list[tuple[int, int, float]]) -> Edit:
    """Set weight[row, column] to values."""

    def edit(weight: Tensor) -> Tensor:
        out = weight.clone()
        for row, column, value in places:
            out[row, column] = value
        return out

    return edit


def with_factors(places: dict[tuple[int, int], float]) -> Edit:
    """Multiply weight[row, column] by factors."""

    def edit(weight: Tensor) -> Tensor:
        out = weight.float().clone()
        for (row, column), factor in places.items():
            out[row, column] *= factor
        return out

    return edit


def replaced_by(value: Tensor) -> Edit:
    """The tensor becomes `value`."""
    return lambda _: value
