"""dfq outliers: which outliers a checkpoint has, where they come from, what they cost, and what to do."""

from __future__ import annotations

import click

from dfrot_cli.lazy_group import LazyGroup

MEMBERS = {
    "measure": "Measure the outliers of a checkpoint, or compare two. `dfq outliers MODEL` does this, too.",
    "fix": "Remove outliers, in a new checkpoint.",
}


class Outliers(LazyGroup):
    """A first argument that is no subcommand is a checkpoint to measure."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `dfq outliers MODEL` as `dfq outliers measure MODEL`."""
        if args and args[0] not in (*self.members, "-h", "--help"):
            args = ["measure", *args]
        return super().parse_args(ctx, args)


@click.group("outliers", cls=Outliers, package="dfrot_cli.commands.outliers", members=MEMBERS)
def command() -> None:
    """Find outliers, explain them, remove them. `dfq outliers MODEL` measures, `dfq outliers A B` compares."""
