"""dfq bench models: whole models beside every engine that is set up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.race.settings import RaceSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, file_option, path_option
from dfrot_cli.plan import numbered, plan
from dfrot_cli.race_show import race_tables
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("models")
@click.option("--model", "models", multiple=True, required=True, metavar="M", help="A 16-bit checkpoint; repeatable.")
@click.option(
    "--packed",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A dfq checkpoint made from one of them (its sizes and tokenizer say from which); repeatable.",
)
@options_of(RaceSettings)
@file_option("Also write race.json and every sample into this folder; the command, given again, goes on there.", "DIR")
@path_option("--figure", text="Also draw the race into this file (.png, .svg or .pdf).", metavar="FILE")
@common
def command(
    models: tuple[str, ...],
    packed: tuple[Path, ...],
    out: Path | None,
    figure: Path | None,
    common: Common,
    **options: Any,
) -> None:
    """Race dfq against other engines at batch 1: time to the first token, decoding, memory, and perplexity beside them.

    Every contender has a process of its own, the same processors, threads and token ids; all take turns. `make peers`
    sets the engines up."""
    common.prepare()
    from dfrot.race.figure import plot_race, require_plotting
    from dfrot.race.run import bench_models

    settings = settings_from(RaceSettings, options)
    folders = [model_folder(model) for model in models]
    if common.plan:
        names = {f"packed {number}": folder for number, folder in enumerate(packed, 1)}
        plan("bench models", {**numbered(folders), **names}, settings, out, common)
        return
    if figure is not None:
        require_plotting()
    with show.progress() as progress:
        report = bench_models(folders, packed, settings, out=out, resume=common.resume, progress=progress)
    if figure is not None:
        plot_race(report, figure)
    show.as_json(report) if common.json else race_tables(report)
