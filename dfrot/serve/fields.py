"""The fields of a request's body, checked one by one."""

from __future__ import annotations

import math
from typing import Any

from dfrot.serve.errors import bad_request


class Fields:
    """Takes fields out of a body and checks them. Every method raises ApiError naming the field."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.left = body
        self.known: list[str] = []  # fields that were asked for, whether the body has them or not

    def take(self, name: str, default: Any = ...) -> Any:
        """The value of a field; `default` where the body lacks it, required without one."""
        self.known.append(name)
        if name in self.left:
            return self.left.pop(name)
        if default is ...:
            raise bad_request(f"{name}: is missing", name, "missing_required_parameter")
        return default

    def text(self, name: str) -> str:
        """A required string."""
        value = self.take(name)
        if not isinstance(value, str):
            raise bad_request(f"{name}: must be text", name)
        return value

    def flag(self, name: str) -> bool:
        """A boolean, False by default."""
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise bad_request(f"{name}: must be true or false", name)
        return value

    def number(self, name: str, default: Any, least: float, most: float, integer: bool = False) -> Any:
        """A number in least .. most: a float, or with `integer` an int."""
        value = self.take(name, default)
        if value is None:
            return None
        if not is_number(value) or (integer and not isinstance(value, int)):
            raise bad_request(f"{name}: must be a {'whole ' if integer else ''}number", name)
        if not least <= value <= most:
            raise bad_request(f"{name}: {value} is outside {least}..{most}", name)
        return value if integer else float(value)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)
