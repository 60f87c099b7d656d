"""Errors of the library in the words of the command line: `seqlen` becomes --seqlen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import click

COMMAND = "dfrot_cli.command"
"""Key of a click context's `meta`: the command that is running."""

_NAME = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")


def flag_of(param: click.Parameter, value: str | None = None) -> str:
    """How a user writes this parameter, with `value` where one is given: `--online=False` is `--no-online`."""
    if not isinstance(param, click.Option):
        return param.human_readable_name
    text = (value or "").strip("\"'")
    if param.is_flag:
        off = text == "False" and param.secondary_opts
        return str(param.secondary_opts[0] if off else param.opts[0])
    return f"{param.opts[0]} {text}".strip()


def find(command: click.Command, name: str) -> click.Parameter | None:
    """The parameter of a command for the setting `name`."""
    named = [param for param in command.params if param.name == name]
    of_field = [param for param in command.params if getattr(param, "field", None) == name]
    return next(iter([*named, *of_field]), None)


def with_flags(
    message: str, command: click.Command | None, earlier: Callable[[], Iterable[click.Command]] = tuple
) -> str:
    """`message` with every setting that `command` has an option for, `name` or `name=value` in backticks, written as
    that option.

    earlier: the commands of earlier stages, whose options a message may ask for (`online=False` of a rotation)."""

    def written(match: re.Match[str]) -> str:
        param = None if command is None else find(command, match[1])
        if param is None and command is not None and match[2] is not None:
            found = (find(other, match[1]) for other in earlier())
            param = next((option for option in found if option is not None), None)
        return match[0] if param is None else flag_of(param, match[2])

    return _NAME.sub(written, message)
