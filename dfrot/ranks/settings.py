"""Settings of processes that work together."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.settings import check, setting


@dataclass(frozen=True)
class RankSettings:
    """How the processes of a run treat one another."""

    processes: int = setting(
        1,
        minimum=1,
        maximum=1024,
        metavar="N",
        help="Processes on this machine that share the work, started as torchrun starts them. With --plan: also "
        "estimate hours for as many processes, each on a machine of its own.",
    )
    rank_timeout: float = setting(
        120.0,
        minimum=5,
        metavar="SECONDS",
        help="With several processes: all must have started within this time, and one without a sign of life for as "
        "long counts as lost, which ends the run.",
    )

    def __post_init__(self) -> None:
        check(self)
