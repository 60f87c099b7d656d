"""Settings of outlier measurements."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfrot.outliers.measure.criteria import Criteria


@dataclass(frozen=True)
class MeasureSettings:
    """criteria; seed of the random rotations; rounds of the refinement; ablate: run the second stream."""

    criteria: Criteria = field(default_factory=Criteria)
    seed: int = 0
    rounds: int = 100
    ablate: bool = True
