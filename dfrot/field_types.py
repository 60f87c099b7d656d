"""Whether what was read from a JSON file has the types that a dataclass declares."""

from __future__ import annotations

import math
from typing import Any, get_type_hints

from dfrot.errors import InputError

_WANTED: dict[type, str] = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text"}


def check_types(values: Any, where: str) -> None:
    """Check the fields of a dataclass instance that are declared as bool, int, float or str: Python takes a text for
    true and true for 1, and kernels would compute with either. Raises InputError naming `where` and the field."""
    for name, kind in get_type_hints(type(values)).items():
        if kind not in _WANTED:
            continue
        value = getattr(values, name)
        right = type(value) is kind or (kind is float and type(value) is int)
        if not right or (kind is float and not math.isfinite(value)):
            raise InputError(f"{where}: {name} is {value!r}, {_WANTED[kind]} is needed")
