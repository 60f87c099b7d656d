"""dfq tune: scales and norm gains of a packed model, fitted end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.ranks.single import Ranks
from dfrot.stages.tune.settings import TuneSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.launch import ranked
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, dataset_option, model_option, out_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("tune")
@model_option
@click.option("--teacher", required=True, metavar="M", help="The 16-bit checkpoint it was made from, rotated or not.")
@dataset_option(TuneSettings)
@options_of(TuneSettings, skip=("dataset", "seed"))
@out_option("Folder of the tuned checkpoint.")
@common
@ranked
def command(
    model: str, teacher: str, out: Path, dataset: str | None, common: Common, ranks: Ranks, **options: Any
) -> None:
    """Fit scales and norm gains of a packed checkpoint to the 16-bit model's predictions; the integers stay.

    Both models must fit into memory: about 3 bytes per weight, and what one window leaves for its gradients. Under
    torchrun or accelerate launch the processes share the windows, and each holds both models."""
    common.prepare()
    from dfrot.hub import default_dataset
    from dfrot.stages.tune.run import tune

    with ranks.first_goes_ahead():
        folder, reference = model_folder(model), model_folder(teacher)
    dataset = dataset or default_dataset(teacher, reference)
    settings = settings_from(TuneSettings, options, dataset=dataset, seed=common.seed)
    if common.plan:
        plan("tune", {"model": folder, "teacher": reference}, settings, out, common)
        return
    with show.progress() as progress:
        evidence = tune(folder, reference, out, settings, progress=progress, ranks=ranks, **common.stage())
    peaks = ranks.peak_bytes()
    if common.json:
        show.as_json({"out": str(out), **evidence, **show.peaks_record(peaks)})
        return
    first, best = evidence["history"][0], min(evidence["history"], key=lambda entry: entry["divergence"])
    facts = {
        "scheme": evidence["scheme"],
        "divergence": f"{first['divergence']:.5f} -> {best['divergence']:.5f} nats per token, held out",
        "best at step": best["step"],
    }
    show.facts(f"tuned {folder}", facts)
    if best["step"] == 0:
        show.line("no improvement: the scales are those of the input; try a smaller --lr or more --steps")
    show.line(f"wrote {out}")
    show.peaks(peaks)
