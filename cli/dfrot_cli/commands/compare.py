"""dfq compare: every method on one model, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.stages.compare.rows import ROWS, STANDARD
from dfrot.stages.compare.settings import CompareSettings
from dfrot_cli import show
from dfrot_cli.compare_show import show_comparison
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, dataset_option, model_option, out_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


def _list_rows(context: click.Context, option: click.Parameter, listed: bool) -> None:
    """Show the rows of the library, and stop."""
    if listed:
        rows = [(name, row.label, "yes" if name in STANDARD else "") for name, row in ROWS.items()]
        show.table("", ("--rows", "method", "by default"), rows)
        context.exit()


@dfq_command("compare")
@click.option(
    "--list-rows",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_rows,
    help="Show all rows, then stop.",
)
@model_option
@dataset_option(CompareSettings)
@options_of(CompareSettings, skip=("dataset", "seed"))
@out_option("Folder of compare.json and compare.md.")
@common
def command(model: str, out: Path, dataset: str | None, common: Common, **options: Any) -> None:
    """Run RTN and GPTQ with every rotation, or the methods of --rows, measure all on the same windows, and print one
    table.

    An interrupted run continues at the row where it stopped. The table ends with the differences between rotations
    and with the papers' claims about them.
    """
    common.prepare()
    from dfrot.hub import default_dataset
    from dfrot.stages.compare.run import compare
    from dfrot.stages.compare.run import plan as plan_cells

    folder = model_folder(model)
    dataset = dataset or default_dataset(model, folder)
    settings = settings_from(CompareSettings, options, dataset=dataset, seed=common.seed)
    if common.plan:
        counts = plan_cells(folder, out, settings)
        plan("compare", {"model": folder, **counts}, settings, out, common)
        return
    with show.progress() as progress:
        report = compare(folder, out, settings, progress=progress, **common.stage())
    show.as_json(report) if common.json else show_comparison(report, out)
