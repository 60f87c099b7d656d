"""Groups that know their commands' names and help lines without importing them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """A group whose commands are the `command` of the modules of one package.

    package: its dotted name. members: by command name, one line of help."""

    def __init__(self, *args: Any, package: str = "", members: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.package, self.members = package, dict(members or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of help."""
        return list(self.members)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command; None for an unknown name."""
        if cmd_name not in self.members:
            return None
        command: click.Command = importlib.import_module(f"{self.package}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called. Of an unknown name, the nearest one is shown."""
        near = difflib.get_close_matches(args[0], self.members, n=1)
        if args[0] not in self.members and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from the help lines alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.members.items()))
