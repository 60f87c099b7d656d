"""dfq outliers measure: the outliers of one checkpoint, or of two side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.outliers.measure.criteria import Criteria
from dfrot.ranks.single import Ranks
from dfrot.stages.outliers.settings import OutlierSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.launch import ranked
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, dataset_option, file_option
from dfrot_cli.plan import numbered, plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("measure")
@click.argument("models", nargs=-1, required=True, metavar="MODEL [OTHER]")
@dataset_option(OutlierSettings)
@options_of(OutlierSettings, skip=("dataset", "seed"))
@options_of(Criteria, only=("absolute", "ratio", "channel"))
@file_option("Folder of report.json and report.html.", metavar="DIR")
@common
@ranked
def command(
    models: tuple[str, ...], out: Path | None, dataset: str | None, common: Common, ranks: Ranks, **options: Any
) -> None:
    """Measure one checkpoint (source, rotated or quantized) in one pass, or compare two.

    Under torchrun or accelerate launch the processes share the work."""
    common.prepare()
    from dfrot.errors import InputError
    from dfrot.hub import default_dataset
    from dfrot.stages.outliers.compare import compare
    from dfrot.stages.outliers.measure import outliers

    if len(models) > 2:
        raise InputError(f"outliers: {len(models)} checkpoints were given; give one to measure or two to compare")
    with ranks.first_goes_ahead():
        folders = [model_folder(model) for model in models]
    dataset = dataset or default_dataset(models[0], folders[0])
    criteria = settings_from(Criteria, options)
    settings = settings_from(OutlierSettings, options, dataset=dataset, seed=common.seed, criteria=criteria)
    if common.plan:
        plan("outliers", numbered(folders), settings, out, common)
        return
    from dfrot_cli.outliers_show import comparison, summary

    with show.progress() as progress:
        if len(folders) == 2:
            report = compare(folders[0], folders[1], out, settings, progress=progress, ranks=ranks, **common.stage())
        else:
            report = outliers(folders[0], out, settings, progress=progress, ranks=ranks, **common.stage())
    peaks = ranks.peak_bytes()
    if common.json:
        show.as_json({"out": None if out is None else str(out), **report, **show.peaks_record(peaks)})
        return
    comparison(report) if len(folders) == 2 else summary(report)
    if out is not None:
        show.line(f"wrote {out / 'report.json'} and {out / 'report.html'}")
    show.peaks(peaks)
