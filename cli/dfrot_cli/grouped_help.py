"""Commands whose --help shows their options under headings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from dfrot.planning.settings import CostSettings
from dfrot.ranks.settings import RankSettings
from dfrot_cli.setting_options import SettingOption

Sections = Mapping[str, tuple[str, ...]]
"""Heading -> parameters of a command."""

OWN, PLAN, EVERY = "Options", "Plans and several processes", "Options of every command"


class GroupedCommand(click.Command):
    """A command with its own options first, those of every command last, and headings between them."""

    def __init__(self, *args: Any, sections: Sections | None = None, **options: Any) -> None:
        """sections: headings for some of the command's own parameters; the others stand in front of them."""
        super().__init__(*args, **options)
        self.sections: Sections = sections or {}

    def heading(self, param: click.Parameter) -> str:
        """Where --help shows an option."""
        from dfrot_cli.options import Common

        owner = param.owner if isinstance(param, SettingOption) else None
        if owner is Common or "--help" in param.opts:
            return EVERY
        if owner in (CostSettings, RankSettings):
            return PLAN
        return next((title for title, names in self.sections.items() if param.name in names), OWN)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a table for every heading."""
        tables: dict[str, list[tuple[str, str]]] = {title: [] for title in (OWN, *self.sections, PLAN, EVERY)}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if row is not None:
                tables[self.heading(param)].append(row)
        for title, rows in tables.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def dfq_command(name: str, sections: Sections | None = None, **options: Any) -> Callable[[Any], GroupedCommand]:
    """`click.command` for a `GroupedCommand`."""
    return click.command(name, cls=GroupedCommand, sections=sections, **options)
