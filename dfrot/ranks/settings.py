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
        metavar="N",
        help="Processes on this machine that share the work, started as torchrun starts them. With --plan: hours on so "
        "many ranks as well, each with a machine of its own, simulated.",
    )
    rank_timeout: float = setting(
        120.0,
        minimum=5,
        metavar="SECONDS",
        help="With several processes: seconds in which all must have met, and without a sign of life after which one "
        "counts as lost, and the run ends.",
    )

    def __post_init__(self) -> None:
        check(self)
