"""dfq calibrate: statistics of every linear's input, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.ranks.single import Ranks
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot_cli import planned_costs, show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.launch import ranked
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, dataset_option, model_option, out_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("calibrate")
@model_option
@dataset_option(CalibrateSettings)
@options_of(CalibrateSettings, skip=("dataset", "seed"))
@planned_costs.shared_options
@out_option("Folder of the calibration.")
@common
@ranked
def command(model: str, out: Path, dataset: str | None, common: Common, ranks: Ranks, **options: Any) -> None:
    """Collect what quantize needs, on a rotated or a source checkpoint.

    One block is in memory at a time. Under torchrun or accelerate launch the processes share the samples."""
    common.prepare()
    if common.plan or planned_costs.named(options):
        planned = settings_from(CalibrateSettings, dict(options), dataset=dataset or "wikitext2", seed=common.seed)
        if planned_costs.shown(model, {"calibrate": planned}, options, common):
            return
    from dfrot.hub import default_dataset
    from dfrot.stages.calibrate.run import calibrate

    with ranks.first_goes_ahead():
        folder = model_folder(model)
    dataset = dataset or default_dataset(model, folder)
    settings = settings_from(CalibrateSettings, options, dataset=dataset, seed=common.seed)
    if common.plan:
        plan("calibrate", {"model": folder}, settings, out, common)
        return
    with show.progress() as progress:
        evidence = calibrate(folder, out, settings, progress=progress, ranks=ranks, **common.stage())
    show.resolved(evidence)
    peaks = ranks.peak_bytes()
    if common.json:
        show.as_json({"out": str(out), **evidence, **show.peaks_record(peaks)})
        return
    if evidence["taps"]:
        show.hardest("inputs", evidence["taps"], "kurtosis", "3 without outliers")
    show.line(f"wrote {out}")
    show.peaks(peaks)
