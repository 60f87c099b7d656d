"""What a plan of costs is made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfrot.settings import check, setting


@dataclass(frozen=True)
class CostSettings:
    """The machine, the configuration and the ranks of a plan."""

    on: str | None = setting(
        None,
        metavar="MACHINE",
        help="With --plan: also estimate hours, on this machine (this; it is timed for a few seconds) or on a listed "
        "one (H100, 8xH100). Default: this, where the model has not been downloaded.",
    )
    config: Path | None = setting(
        None,
        metavar="FILE",
        help="With --plan: the model's config.json, where nothing else of the model is at hand.",
    )
    processes: int = setting(
        1,
        minimum=1,
        metavar="N",
        help="With --plan: also estimate hours for as many processes, each on a machine of its own.",
    )
    network: float = setting(
        25.0, above=0, metavar="GBIT", help="With --plan and `processes`: network speed of each machine, in Gbit/s."
    )

    def __post_init__(self) -> None:
        check(self)
