"""dfq calibrate: statistics of every linear's input, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.planning.settings import CostSettings
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot_cli import show
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, dataset_option, model_option, out_option
from dfrot_cli.plan import plan
from dfrot_cli.planned_costs import cost_options, show_costs, wanted
from dfrot_cli.setting_options import options_of, settings_from


@click.command("calibrate")
@model_option
@dataset_option(CalibrateSettings)
@options_of(CalibrateSettings, skip=("dataset", "seed"))
@cost_options
@out_option("Folder of the calibration.")
@common
def command(model: str, out: Path, dataset: str | None, common: Common, **options: Any) -> None:
    """Collect what quantize needs, on a rotated or a source checkpoint.

    One block is in memory at a time."""
    common.prepare()
    costs = settings_from(CostSettings, options)
    if wanted(model, costs, common):
        planned = settings_from(CalibrateSettings, options, dataset=dataset or "wikitext2", seed=common.seed)
        show_costs(model, {"calibrate": planned}, costs, common)
        return
    from dfrot.hub import default_dataset
    from dfrot.stages.calibrate.run import calibrate

    folder = model_folder(model)
    dataset = dataset or default_dataset(model, folder)
    settings = settings_from(CalibrateSettings, options, dataset=dataset, seed=common.seed)
    if common.plan:
        plan("calibrate", {"model": folder}, settings, out, common)
        return
    with show.progress() as progress:
        evidence = calibrate(folder, out, settings, progress=progress, **common.stage())
    show.resolved(evidence)
    if common.json:
        show.as_json({"out": str(out), **evidence})
        return
    if evidence["taps"]:
        show.hardest("inputs", evidence["taps"], "kurtosis")
    show.line(f"wrote {out}")
