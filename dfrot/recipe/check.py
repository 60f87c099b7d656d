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
    """What a recipe claims about one metric."""

    value: float
    """The expected value."""
    tolerance: float
    """How far a measurement may be from the value, relative to it."""
    source: str
    """Where the value comes from."""
    status: Status
    """`measured` by us with this recipe, or `not yet reproduced` for a published figure."""

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise InputError(
                f"`tolerance` {self.tolerance}: cannot be negative; 0.01 is one percent", field="tolerance"
            )


Expected = dict[str, Expectation]
"""Expectations by metric, such as `packed.perplexity`."""


def parse(value: Any, possible: Sequence[str], where: str) -> Expected:
    """The expectations in the section `expect` of a recipe: by checkpoint, then by metric.

    possible: the metrics that the recipe's stages measure. where: the section, for messages. Raises InputError for
    anything else."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: a section with keys is needed, like expect.packed.perplexity.value")
    expected: Expected = {}
    for subject, metrics in value.items():
        if not isinstance(metrics, Mapping):
            raise InputError(f"{where}.{subject}: a section with metrics is needed")
        for metric, entry in metrics.items():
            name = f"{subject}.{metric}"
            if name not in possible:
                raise InputError(f"{where}.{name}: no stage of this recipe measures it; {nearest(name, possible)}")
            expected[name] = build(Expectation, entry, f"{where}.{name}")
    return expected


def compare(expected: Expected, metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row per expectation: metric, measured, difference (relative), passed, and the fields of Expectation."""
    rows = []
    for name, expectation in expected.items():
        measured = metrics[name]
        value = expectation.value
        difference = (measured - value) / abs(value) if value else measured
        row = {"metric": name, "measured": measured, "difference": difference}
        rows.append({**row, "passed": abs(difference) <= expectation.tolerance, **asdict(expectation)})
    return rows


def require(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise GateError, naming the first metric out of tolerance and how many there are, or InputError where the recipe
    expects nothing. rows: of `compare`."""
    if not rows:
        raise InputError("`check`: the recipe expects nothing; add a section expect, or leave it out", field="check")
    failed = [row for row in rows if not row["passed"]]
    if not failed:
        return
    first = failed[0]
    more = f" ({len(failed)} of {len(rows)} expectations fail)" if len(rows) > 1 else ""
    raise GateError(
        f"{first['metric']}: measured {first['measured']:.6g}, expected {first['value']:.6g} within "
        f"{first['tolerance']:.2%} ({first['status']}), off by {first['difference']:+.2%}{more}"
    )
