"""Options of commands, derived from the settings of the library: name, default, range, choices and help."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar, Union

import click
from click.core import ParameterSource

from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.settings import Setting, default_of, settings_of
from dfrot_cli.flags import COMMAND
from dfrot_cli.setting_types import NUMBER_OR_WORD, SCHEME, TABLE, listed_text, listed_type, number_name, number_type

Function = TypeVar("Function", bound=Callable[..., Any])
Settings = TypeVar("Settings")
_ON_COMMAND_LINE = {"out": "--out", "check": "--check"}  # what help texts name besides the settings themselves


class SettingOption(click.Option):
    """An option for the field `field` of the settings class `owner`."""

    def __init__(self, *args: Any, owner: type[Any], field: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.owner, self.field = owner, field

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """The parsed value. Raises InputError, in one line, for what the setting does not allow."""
        ctx.meta[COMMAND] = ctx.command  # errors are shown with the flags of this command
        result = super().process_value(ctx, value)
        if ctx.get_parameter_source(str(self.name)) not in (None, ParameterSource.DEFAULT):
            known = settings_of(self.owner)[self.field]
            known.check(str(self.name), result)
        return result


def options_of(
    settings: type[Any],
    *,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = ("seed",),
    rename: Mapping[str, str] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Function], Function]:
    """A decorator that adds an option for every described field of a settings class.

    only: the fields to add; empty for all but those in `skip`. rename: parameter names by field, where two classes
    would collide. more: further arguments of `click.option` by field. The function gets the values by parameter name;
    `settings_from` makes settings of them."""
    names = [name for name in settings_of(settings) if (name in only if only else name not in skip)]
    hints = typing.get_type_hints(settings)

    def decorate(function: Function) -> Function:
        for name in reversed(names):
            param = (rename or {}).get(name, name)
            function = _option(settings, name, param, hints[name], (more or {}).get(name, {}))(function)
        return function

    return decorate


def settings_from(
    settings: type[Settings], values: dict[str, Any], rename: Mapping[str, str] | None = None, **given: Any
) -> Settings:
    """An instance of a settings class from `given` and from the options in `values`, which are taken out of it."""
    for name in settings_of(settings):
        value = values.pop((rename or {}).get(name, name), None) if name not in given else None
        if value is not None:
            given[name] = value
    return settings(**given)


def help_of(settings: type[Any], name: str) -> str:
    """The help text of a field, with the options of other fields in place of their names in backticks."""
    known = settings_of(settings)

    def written(match: re.Match[str]) -> str:
        other = match[1]
        return _flags(known[other], other)[0].split("/")[0] if other in known else _ON_COMMAND_LINE.get(other, match[0])

    return re.sub(r"`(\w+)`", written, known[name].help)


def _flags(known: Setting, param: str) -> list[str]:
    return [known.option or "--" + param.replace("_", "-"), *known.aliases]


def _option(
    settings: type[Any], name: str, param: str, hint: Any, more: Mapping[str, Any]
) -> Callable[[Function], Function]:
    known, default = settings_of(settings)[name], default_of(settings, name)
    flags = _flags(known, param)
    options: dict[str, Any] = {"help": help_of(settings, name), "metavar": known.metavar}
    if default is MISSING:
        options["required"] = True
    else:
        shown = default is not False and default not in (None, "", ())
        options |= {"default": default if shown else None, "show_default": shown}
    kind = _plain(hint)
    if kind is bool:
        del options["metavar"]
        if default is True and not known.option:
            flags[0] += "/--no-" + flags[0][2:]
        pair = "/" in flags[0]
        options |= {"is_flag": True, "default": default, "show_default": pair and default is not None}
    else:
        options |= _typed(kind, known, default)
    return click.option(*flags, param, cls=SettingOption, owner=settings, field=name, **{**options, **more})


def _plain(hint: Any) -> Any:
    """The type of a value that is given: `int` of `int | None`."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0]
    return hint


def _typed(kind: Any, known: Setting, default: Any) -> dict[str, Any]:
    """How click reads a value of this type."""
    if known.choices and not known.listed:
        return {"type": click.Choice(list(known.choices)), "metavar": None}
    if known.words:
        return {"type": NUMBER_OR_WORD}
    if kind in (int, float):
        return {"type": number_type(kind, known), "metavar": number_name(kind, known)}
    if kind is QuantScheme:
        return {"type": SCHEME, "default": None if default is None else default.name}
    if kind is TableScheme:
        return {"type": TABLE, "default": default.name}
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if known.listed:
            return {"type": listed_type(item), "default": listed_text(default) or None}
        given = {} if default is MISSING else {"default": default}
        return {"type": click.Path(path_type=Path) if item is Path else str, "multiple": True, **given}
    return {"type": click.Path(path_type=Path) if kind is Path else str}
