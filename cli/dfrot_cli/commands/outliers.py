"""dfq outliers: which outliers a checkpoint has, where they come from, what they cost, and what to do."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common, dataset_option, seqlen_option
from dfrot_cli.plan import numbered, plan

SUBCOMMANDS = ("fix",)


class _Measuring(click.Group):
    """`dfq outliers MODEL` measures; a first word that names a subcommand is one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*SUBCOMMANDS, "-h", "--help"):
            args = ["measure", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in SUBCOMMANDS:
            loaded: click.Command = importlib.import_module(f"dfrot_cli.commands.outliers_{cmd_name}").command
            return loaded
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["measure", *SUBCOMMANDS]


@click.group("outliers", cls=_Measuring)
def command() -> None:
    """Find outliers, explain them, remove them. `dfq outliers MODEL` measures, `dfq outliers A B` compares."""


@command.command("measure")
@click.argument("models", nargs=-1, required=True, metavar="MODEL [OTHER]")
@dataset_option
@seqlen_option
@click.option("--windows", type=click.IntRange(1), default=1, show_default=True, help="Stretches of text measured.")
@click.option("--absolute", type=float, default=100.0, show_default=True, help="Massive: |x| above this, and")
@click.option("--ratio", type=float, default=1000.0, show_default=True, help="... times the median (at width 4096).")
@click.option(
    "--channel", type=float, default=6.0, show_default=True, help="Channel outlier: times the median channel."
)
@click.option("--rounds", type=click.IntRange(0), default=100, show_default=True, help="Refinement rounds at most.")
@click.option("--ablate/--no-ablate", default=True, show_default=True, help="Confirm attributions by a second stream.")
@click.option("--perplexity/--no-perplexity", default=None, help="Measure the recipe. Default: with --out, up to 1e9.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of report.json and report.html.")
@common
def measure(models: tuple[str, ...], out: Path | None, dataset: str | None, common: Common, **options: Any) -> None:
    """Measure one checkpoint (original, rotated or quantized) in one pass, or compare two."""
    common.prepare()
    from dfrot.errors import InputError
    from dfrot.hub import default_dataset, resolve_model
    from dfrot.outliers.measure.criteria import Criteria
    from dfrot.stages.outliers.compare import compare
    from dfrot.stages.outliers.measure import outliers
    from dfrot.stages.outliers.settings import OutlierSettings

    if len(models) > 2:
        raise InputError(f"outliers: {len(models)} checkpoints were given; give one to measure or two to compare")
    folders = [resolve_model(model) for model in models]
    dataset = dataset or default_dataset(models[0], folders[0])
    criteria = Criteria(*(options.pop(name) for name in ("absolute", "ratio", "channel")))
    settings = OutlierSettings(dataset=dataset, seed=common.seed, criteria=criteria, **options)
    if common.plan:
        plan("outliers", numbered(folders), settings, out, common)
        return
    from dfrot_cli.outliers_show import comparison, summary

    with show.progress() as progress:
        if len(folders) == 2:
            report = compare(folders[0], folders[1], out, settings, progress=progress, **common.stage())
        else:
            report = outliers(folders[0], out, settings, progress=progress, **common.stage())
    if common.json:
        show.as_json({"out": None if out is None else str(out), **report})
        return
    comparison(report) if len(folders) == 2 else summary(report)
    if out is not None:
        show.line(f"wrote {out / 'report.json'} and {out / 'report.html'}")
