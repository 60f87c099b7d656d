"""Settings of outlier measurements."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfrot.outliers.measure.criteria import Criteria
from dfrot.rotation.refinement.settings import RefineSettings
from dfrot.settings import check, same_as, seed_setting, setting


@dataclass(frozen=True)
class MeasureSettings:
    """How the outliers of a checkpoint are measured."""

    criteria: Criteria = field(default_factory=Criteria)
    """What counts as an outlier."""
    seed: int = seed_setting()
    rounds: int = same_as(RefineSettings, "rounds")
    ablate: bool = setting(
        True, help="Confirm where outliers come from by a second residual stream without their sources."
    )

    def __post_init__(self) -> None:
        check(self)
