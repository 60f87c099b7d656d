"""What a check says about a folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a folder, or that could not be checked."""

    check: str
    """Name of the check."""
    where: str
    """The file, tensor or setting at fault."""
    problem: str
    """What is wrong there."""
    remedy: str
    """What to do."""
    blocks: bool = True
    """Whether it stops the upload; False: a note."""
    forcible: bool = True
    """Whether `force` overrides it."""

    @property
    def line(self) -> str:
        """What, where and what to do, in one line."""
        return f"{self.where}: {self.problem}; {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)
