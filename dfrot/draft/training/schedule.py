"""How many steps fit into a budget of time, from the measured speed of a few."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PROBE_STEPS = 5  # steps by which the speed is measured, behind a first one that is not counted


@dataclass(frozen=True)
class Schedule:
    """The steps of a run with a budget. Fixed when the run begins: a resumed run keeps it, whatever its speed."""

    hours: float
    """The budget, of training alone."""
    steps: int
    """Steps that fit."""
    seconds_per_step: float
    """Measured."""
    seconds_per_evaluation: float
    """Measured, of all held-out samples."""

    @classmethod
    def fitting(cls, hours: float, evaluations: int, step: float, evaluation: float) -> Schedule:
        """The schedule of a budget that pays for `evaluations` evaluations, the one before the first step, and the
        steps between them; at least one step. step, evaluation: seconds that each takes."""
        left = 3600 * hours - (PROBE_STEPS + 1) * step - (evaluations + 1) * evaluation
        return cls(hours, max(1, int(left / step)), step, evaluation)

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)
