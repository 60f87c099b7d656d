"""Settings of the stages that recipes alone have."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.settings import setting
from dfrot.stages.evaluate.settings import PerplexitySettings


@dataclass(frozen=True)
class CheckpointEval(PerplexitySettings):
    """The checkpoints of a recipe's run that are evaluated on the same windows."""

    checkpoints: tuple[str, ...] = setting(
        ("model", "packed"), help="Which folders of the run are evaluated; the first is the baseline."
    )
