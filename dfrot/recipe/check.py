"""Expected metrics: what a recipe claims, what a run measured, and whether the two agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dfrot.errors import GateError, InputError
from dfrot.recipe.convert import build, nearest

Status = Literal["measured", "not yet reproduced"]


@dataclass(frozen=True)
class Expectation:
    """value, and how far a measurement may be from it, relative to it. source: where the value is from. status:
    `measured` by us with this recipe, or `not yet reproduced` (a published figure)."""

    value: float
    tolerance: float
    source: str
    status: Status

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise InputError(f"tolerance {self.tolerance}: cannot be negative; 0.01 is one percent")


Expected = dict[str, Expectation]
"""By metric: `packed.perplexity`."""


def parse(value: Any, possible: Sequence[str], where: str) -> Expected:
    """The section `expect`: checkpoint, metric, expectation. `possible`: metrics that the recipe's stages measure."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: a section with keys is needed, like expect.packed.perplexity.value")
    found: Expected = {}
    for subject, metrics in value.items():
        if not isinstance(metrics, Mapping):
            raise InputError(f"{where}.{subject}: a section with metrics is needed")
        for metric, given in metrics.items():
            name = f"{subject}.{metric}"
            if name not in possible:
                raise InputError(f"{where}.{name}: no stage of this recipe measures it; {nearest(name, possible)}")
            found[name] = build(Expectation, given, f"{where}.{name}")
    return found


def compare(expected: Expected, metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row per expectation: metric, measured, value, tolerance, difference (relative), passed, status, source."""
    rows = []
    for name, one in expected.items():
        measured = metrics[name]
        difference = (measured - one.value) / abs(one.value) if one.value else measured
        row = {"metric": name, "measured": measured, "difference": difference}
        rows.append({**row, "passed": abs(difference) <= one.tolerance, **asdict(one)})
    return rows


def require(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises GateError naming the first metric that is off, and how many are; InputError when nothing was claimed."""
    if not rows:
        raise InputError("--check: the recipe expects nothing; add a section expect, or leave out --check")
    off = [row for row in rows if not row["passed"]]
    if not off:
        return
    first = off[0]
    more = f" ({len(off)} of {len(rows)} expectations fail)" if len(rows) > 1 else ""
    raise GateError(
        f"{first['metric']}: measured {first['measured']:.6g}, expected {first['value']:.6g} within "
        f"{first['tolerance']:.2%} ({first['status']}), off by {first['difference']:+.2%}{more}"
    )
