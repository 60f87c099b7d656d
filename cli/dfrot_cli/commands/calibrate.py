"""dfq calibrate: statistics of every linear's input, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common, dataset_option, model_option, out_option, seqlen_option
from dfrot_cli.plan import plan


@click.command("calibrate")
@model_option
@dataset_option
@click.option("--samples", type=click.IntRange(1), default=128, show_default=True, help="Windows of text.")
@seqlen_option
@click.option("--hessians/--no-hessians", default=True, show_default=True, help="Keep second moments in the result.")
@click.option(
    "--statistics/--no-statistics",
    default=True,
    show_default=True,
    help="Without: keep the tokens alone, in seconds; all that GPTQ needs while errors propagate.",
)
@out_option("Folder of the calibration.")
@common
def command(model: str, out: Path, dataset: str | None, common: Common, **options: Any) -> None:
    """Collect what quantize needs, on a rotated (or original) checkpoint; one block is in memory at a time."""
    common.prepare()
    from dfrot.hub import default_dataset, resolve_model
    from dfrot.stages.calibrate.run import calibrate
    from dfrot.stages.calibrate.settings import CalibrateSettings

    folder = resolve_model(model)
    dataset = dataset or default_dataset(model, folder)
    settings = CalibrateSettings(dataset=dataset, seed=common.seed, **options)
    if common.plan:
        plan("calibrate", {"model": folder}, settings, out, common)
        return
    with show.progress() as progress:
        evidence = calibrate(folder, out, settings, progress=progress, **common.stage())
    if common.json:
        show.as_json({"out": str(out), **evidence})
        return
    if evidence["taps"]:
        show.hardest("inputs", evidence["taps"], "kurtosis")
    show.line(f"wrote {out}")
