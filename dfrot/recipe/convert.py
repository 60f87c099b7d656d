"""From plain values (of YAML) to settings: the settings classes of the library are the schema of a recipe.

Every key must be a field and every value must have the field's type. Defaults, ranges and choices are those of the
fields (dfrot/settings.py); nothing is guessed and nothing is dropped.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union

from dfrot.errors import DfqError, InputError
from dfrot.recipe.types import NAMED, fits, is_settable, shown, wanted

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: `did you mean X? (known: ...)`."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, 1, 0.5)
    return (f"did you mean {matches[0]}? " if matches else "") + f"(known: {', '.join(names)})"


def build(settings: type[T], value: Any, where: str, shared: Mapping[str, Any] | None = None) -> T:
    """An instance of a settings class from a mapping of field names to plain values.

    where: the section, for messages. shared: values of fields with these names that the mapping leaves out, at any
    depth (the recipe's dataset and seed). Raises InputError that names the key, or the error of the settings' own
    checks with the section in front."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {shown(value)} was given; a section with keys is needed")
    shared = shared or {}
    hints = typing.get_type_hints(settings)
    known = {field.name: field for field in fields(settings) if is_settable(hints[field.name])}  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise InputError(f"{where}.{key}: unknown key; {nearest(str(key), known)}")
    values: dict[str, Any] = {}
    for name, field in known.items():
        hint = hints[name]
        if name in value:
            values[name] = convert(value[name], hint, f"{where}.{name}", shared)
        elif name in shared:
            values[name] = shared[name]
        elif is_dataclass(hint) and not any(_required(inner) for inner in fields(hint)):
            values[name] = build(hint, {}, f"{where}.{name}", shared)  # type: ignore[arg-type]
        elif _required(field):
            raise InputError(f"{where}.{name}: is missing; add it")
    try:
        return settings(**values)
    except DfqError as error:  # the settings' own checks know neither file nor section
        raise _placed(error, where) from None


def convert(value: Any, hint: Any, where: str, shared: Mapping[str, Any] | None = None) -> Any:
    """`value` as the type `hint`. where: the key, for messages. Raises InputError for a value of another type."""
    if hint in NAMED and isinstance(value, NAMED[hint]) and not isinstance(value, bool):
        try:
            return hint.parse(value)
        except DfqError as error:
            raise _placed(error, where) from None
    if is_dataclass(hint):
        return build(hint, value, where, shared)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for kind in arguments:
            if fits(value, kind):
                return convert(value, kind, where, shared)
    elif origin is Literal and value in arguments:
        return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            items = enumerate(zip(value, kinds))
            return tuple(convert(item, kind, f"{where}[{n}]", shared) for n, (item, kind) in items)
    elif fits(value, hint):
        return float(value) if hint is float else value
    raise InputError(f"{where}: {shown(value)} was given; {wanted(hint)} is needed")


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _placed(error: DfqError, where: str) -> DfqError:
    """The same error with the section in front of its message."""
    return type(error)(
        f"{where}: {error}",
        field=error.fields,
        file=error.file,
        tensor=error.tensor,
        limit=error.limit,
        code=error.code,
    )
