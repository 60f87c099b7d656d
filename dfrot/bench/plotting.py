"""The door to matplotlib, which is an optional package."""

from __future__ import annotations

from typing import Any

from dfrot.errors import ResourceError

DPI = 130


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches. Raises ResourceError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("the figure needs matplotlib, which is not installed: pip install 'dfq[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")
