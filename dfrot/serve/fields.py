"""fields"""

from __future__ import annotations

import math
from typing import Any

from dfrot.serve.errors import bad_request


class _Fields:
    """Fields of a body, taken out one by one with their checks."""

    def __init__(self, left: dict[str, Any]) -> None:
        self.left = left
        self.seen: list[str] = []

    def take(self, name: str, default: Any = ...) -> Any:
        self.seen.append(name)
        if name in self.left:
            return self.left.pop(name)
        if default is ...:
            raise bad_request(f"{name}: is missing", name, "missing_required_parameter")
        return default

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str):
            raise bad_request(f"{name}: must be text", name)
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise bad_request(f"{name}: must be true or false", name)
        return value

    def number(self, name: str, default: Any, least: float, most: float, whole: bool = False) -> Any:
        value = self.take(name, default)
        if value is None:
            return None
        if not _number(value) or (whole and not isinstance(value, int)):
            raise bad_request(f"{name}: must be a {'whole ' if whole else ''}number", name)
        if not least <= value <= most:
            raise bad_request(f"{name}: {value} is outside {least}..{most}", name)
        return value if whole else float(value)


def _number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)
