"""Figures of a record: further digits would depend on the order of summation, and a record must not."""

from __future__ import annotations

from typing import Any


def significant(value: Any, digits: int = 3) -> Any:
    """A float to so many significant digits; dicts and lists with theirs, everything else as it is."""
    if isinstance(value, dict):
        return {key: significant(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [significant(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
