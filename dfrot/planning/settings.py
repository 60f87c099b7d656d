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
        help="With --plan: hours as well, on this machine (this; it is timed for a few seconds) or on one of a table "
        "(H100, 8xH100). Default: this, where the model is not on this machine.",
    )
    config: Path | None = setting(
        None,
        metavar="FILE",
        help="With --plan: the model's config.json, in place of what the model's name resolves to.",
    )
    processes: int = setting(
        1,
        minimum=1,
        metavar="N",
        help="With --plan: hours on so many ranks as well, each with a machine of its own, simulated.",
    )
    network: float = setting(
        25.0, above=0, metavar="GBIT", help="With `processes`: gigabits per second of the wire of each."
    )

    def __post_init__(self) -> None:
        check(self)
