"""What a plan of costs is made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfrot.settings import check, setting


@dataclass(frozen=True)
class CostSettings:
    """The machine and the configuration of a plan."""

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

    def __post_init__(self) -> None:
        check(self)
