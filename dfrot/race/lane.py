"""A contender in the race."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dfrot.race.driver_process import DriverProcess
from dfrot.race.field import Contender

FACTS = ("load", "losses", "text", "text_loss", "memory")


@dataclass
class Lane:
    """A contender in the race, and what is known of it."""

    contender: Contender
    """Who."""
    process: DriverProcess | None
    """Its process; None where everything of it was measured before."""
    load: dict[str, Any] = field(default_factory=dict)
    """The answer to `load`."""
    losses: list[float] = field(default_factory=list)
    """Mean negative log-likelihood of each window."""
    text: list[int] = field(default_factory=list)
    """Its greedy text behind the beginning of the prompt."""
    text_loss: float | None = None
    """Mean negative log-likelihood of that text, as the 16-bit model sees it."""
    memory: dict[str, int] = field(default_factory=dict)
    """The answer to `memory`, the newest."""

    def facts(self) -> dict[str, Any]:
        """What is known, for a file."""
        return {name: getattr(self, name) for name in FACTS}
