"""Settings of processes that work together."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.settings import check, setting


@dataclass(frozen=True)
class RankSettings:
    """How the processes of a run treat one another."""

    rank_timeout: float = setting(
        120.0,
        minimum=5,
        metavar="SECONDS",
        help="Under torchrun: seconds without a sign of life after which a process counts as lost, and the run ends.",
    )

    def __post_init__(self) -> None:
        check(self)
