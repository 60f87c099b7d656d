"""Plain values (from YAML) to the settings of the stages: the dataclasses of the library are the schema.

Every key must be a field, every value of the field's type; nothing is guessed and nothing is dropped.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union

from dfrot.errors import DfqError, InputError
from dfrot.quant.scheme import QuantScheme

T = TypeVar("T")
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X? (known: ...)` for an unknown name."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return (f"did you mean {near[0]}? " if near else "") + f"(known: {', '.join(names)})"


def build(kind: type[T], value: Any, where: str, shared: Mapping[str, Any] | None = None) -> T:
    """An instance of the dataclass `kind` from a mapping. `shared`: defaults for fields of these names, at any depth
    (the recipe's dataset and seed). Raises InputError naming the key."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {_shown(value)} was given; a section with keys is needed")
    shared = shared or {}
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if _settable(hints[field.name])}  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise InputError(f"{where}.{key}: unknown key; {nearest(str(key), known)}")
    given: dict[str, Any] = {}
    for name, field in known.items():
        hint = hints[name]
        if name in value:
            given[name] = convert(value[name], hint, f"{where}.{name}", shared)
        elif name in shared:
            given[name] = shared[name]
        elif is_dataclass(hint) and not _required(hint):
            given[name] = build(hint, {}, f"{where}.{name}", shared)  # type: ignore[arg-type]
        elif _missing(field):
            raise InputError(f"{where}.{name}: is missing; add it")
    try:
        return kind(**given)
    except DfqError as error:  # the settings' own checks know neither file nor section
        raise type(error)(f"{where}: {error}") from None


def convert(value: Any, hint: Any, where: str, shared: Mapping[str, Any] | None = None) -> Any:
    """`value` as the type `hint`. Raises InputError naming `where`."""
    if hint is QuantScheme and isinstance(value, str):
        try:
            return QuantScheme.parse(value)
        except DfqError as error:
            raise type(error)(f"{where}: {error}") from None
    if is_dataclass(hint):
        return build(hint, value, where, shared)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for one in arguments:
            if _fits(value, one):
                return convert(value, one, where, shared)
    elif origin is Literal and value in arguments:
        return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is Ellipsis:
            kinds = [arguments[0]] * len(value)
        else:
            kinds = list(arguments)
        if len(kinds) == len(value):
            return tuple(
                convert(item, kind, f"{where}[{n}]", shared) for n, (item, kind) in enumerate(zip(value, kinds))
            )
    elif _fits(value, hint):
        return float(value) if hint is float else value
    raise InputError(f"{where}: {_shown(value)} was given; {_wanted(hint)} is needed")


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is type(None):
        return value is None
    if is_dataclass(hint):
        return isinstance(value, Mapping) or (hint is QuantScheme and isinstance(value, str))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, (list, tuple))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _settable(hint: Any) -> bool:
    """Whether a value of this type can stand in a file."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType, tuple):
        return all(_settable(one) for one in arguments if one is not Ellipsis)
    return origin is Literal or hint in (bool, int, float, str, type(None)) or is_dataclass(hint)


def _required(kind: Any) -> bool:
    return any(_missing(field) for field in fields(kind))


def _missing(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wanted(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        return " or ".join(_wanted(one) for one in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    return _NAMES.get(hint, "a section with keys")
