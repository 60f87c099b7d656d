"""How the library reports progress: through a callback, which the command line shows."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`progress(label, done, total)`: called by the library, shown by the command line."""


def silent(label: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""
