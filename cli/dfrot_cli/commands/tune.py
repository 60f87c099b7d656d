"""dfq tune: scales and norm gains of a packed model, fitted end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common, dataset_option, model_option, out_option
from dfrot_cli.plan import plan


@click.command("tune")
@model_option
@click.option("--teacher", required=True, metavar="M", help="The 16-bit checkpoint it was made from, rotated or not.")
@dataset_option
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="Steps of the optimizer.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Windows of a step.")
@click.option("--seqlen", type=click.IntRange(2), default=512, show_default=True, help="Window length.")
@click.option("--lr", type=float, default=2e-3, show_default=True, help="Learning rate at its peak.")
@click.option("--held-out", type=click.IntRange(1), default=8, show_default=True, help="Windows that judge.")
@click.option("--evaluations", type=click.IntRange(1), default=5, show_default=True, help="How often they do.")
@out_option("Folder of the tuned checkpoint.")
@common
def command(model: str, teacher: str, out: Path, dataset: str | None, common: Common, **options: Any) -> None:
    """Fit the scales and norm gains of a packed checkpoint to the 16-bit model's predictions; the integers stay.

    For models that fit into memory with their gradients: some 12 bytes per weight."""
    common.prepare()
    from dfrot.hub import default_dataset, resolve_model
    from dfrot.stages.tune.run import tune
    from dfrot.stages.tune.settings import TuneSettings

    folder, reference = resolve_model(model), resolve_model(teacher)
    dataset = dataset or default_dataset(teacher, reference)
    settings = TuneSettings(dataset=dataset, seed=common.seed, **options)
    if common.plan:
        plan("tune", {"model": folder, "teacher": reference}, settings, out, common)
        return
    with show.progress() as progress:
        evidence = tune(folder, reference, out, settings, progress=progress, **common.stage())
    if common.json:
        show.as_json({"out": str(out), **evidence})
        return
    first, best = evidence["history"][0], min(evidence["history"], key=lambda one: one["divergence"])
    facts = {
        "scheme": evidence["scheme"],
        "divergence": f"{first['divergence']:.5f} -> {best['divergence']:.5f} nats per token, held out",
        "best at step": best["step"],
    }
    show.facts(f"tuned {folder}", facts)
    if best["step"] == 0:
        show.line("nothing was gained: the scales are those of the input; try a smaller --lr or more --steps")
    show.line(f"wrote {out}")
