"""dfq report: results of several runs in one table."""

from __future__ import annotations

from pathlib import Path

import click

from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common, require_new
from dfrot_cli.plan import plan

WIDE = 7  # columns that fit a terminal


@dfq_command("report")
@click.argument("places", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option(
    "--out",
    "outs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the table to this .md or .html file; repeatable.",
)
@common
def command(places: tuple[Path, ...], outs: tuple[Path, ...], common: Common) -> None:
    """Collect what dfq run and dfq eval (ppl, kl, speed, tasks with --out) measured, one line per checkpoint.

    Numbers share a column only where they were measured alike: text, windows, dtypes, tasks, machine."""
    common.prepare()
    from dfrot.errors import InputError
    from dfrot.files import write_bytes
    from dfrot.stages.report.collect import collect_results
    from dfrot.stages.report.render import WRITERS, text_rows

    for out in outs:
        if out.suffix not in WRITERS:
            raise InputError(f"`outs` {out}: the name must end in {' or '.join(WRITERS)}", field="outs", file=out)
        require_new(out, common)
    if common.plan:
        plan(
            "report", {f"place {n}": place for n, place in enumerate(places, 1)}, {}, outs[0] if outs else None, common
        )
        return
    table = collect_results(places)
    for out in outs:
        write_bytes(out, WRITERS[out.suffix](table).encode())
    if common.json:
        show.as_json(table.to_dict())
        return
    heads, rows = text_rows(table)
    if len(heads) > WIDE > len(rows):  # few checkpoints, many measurements: one line per measurement
        transposed = [list(row) for row in zip(heads, *rows)]
        heads, rows = transposed[0], transposed[1:]
    show.table("", heads, rows)
    for out in outs:
        show.line(f"wrote {out}")
