"""The types that values of a recipe can have."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, Union

from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme

NAMED: dict[Any, tuple[type, ...]] = {QuantScheme: (str,), TableScheme: (str, int)}
"""Settings that a recipe gives by their name, and the types in which YAML reads such names."""
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_SHOWN_CHARACTERS = 60  # of a wrong value in a message


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of the type `hint`: the first that fits of a union is taken."""
    origin = typing.get_origin(hint)
    if hint is type(None):
        return value is None
    if is_dataclass(hint):
        return isinstance(value, (Mapping, *NAMED.get(hint, ())))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, (list, tuple))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def is_settable(hint: Any) -> bool:
    """Whether a recipe can hold a value of this type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType, tuple):
        return all(is_settable(kind) for kind in arguments if kind is not Ellipsis)
    return origin is Literal or hint in (bool, int, float, str, type(None)) or is_dataclass(hint)


def shown(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def wanted(hint: Any) -> str:
    """What a value of this type is, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        return " or ".join(wanted(kind) for kind in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    return _NAMES.get(hint, "a section with keys")
