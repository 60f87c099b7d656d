"""dfq eval kl: how far predictions are from the baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands.eval_options import file_option, keep, models_option, resolved
from dfrot_cli.options import Common, common, dataset_option, seqlen_option
from dfrot_cli.plan import numbered, plan


@click.command("kl")
@models_option
@dataset_option
@seqlen_option
@click.option("--windows", type=click.IntRange(1), help="The first N windows only.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Windows per forward pass.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: the checkpoint's own.")
@click.option("--fake", is_flag=True, help="Run packed checkpoints as their simulated twins.")
@file_option
@common
def kl(models: tuple[str, ...], out: Path | None, common: Common, dataset: str | None, **options: Any) -> None:
    """KL divergence from the first checkpoint, token by token: mean, quantiles, top-1 agreement.

    Perplexity can stay while predictions change; the divergence from the original model cannot."""
    common.prepare()
    from dfrot.hub import default_dataset
    from dfrot.stages.evaluate.kl import divergence
    from dfrot.stages.evaluate.settings import KlSettings

    folders = resolved(models, out, common)
    settings = KlSettings(dataset=dataset or default_dataset(models[0], folders[0]), **options)
    if common.plan:
        plan("eval kl", numbered(folders), settings, out, common)
        return
    with show.progress() as progress:
        report = divergence(folders, settings, progress)
    keep(report, models, out)
    if common.json:
        show.as_json(report)
        return
    heads = ("model", "scheme", "perplexity", "KL", "95 % interval", "median", "90 %", "99 %", "99.9 %", "top-1")
    rows = []
    for result in report["results"]:
        quantiles = [result.get("kl_quantiles", {}).get(q) for q in ("0.5", "0.9", "0.99", "0.999")]
        numbers = [result.get(key) for key in ("scheme", "perplexity", "kl", "kl_ci")]
        rows.append((result["name"], *numbers, *quantiles, result.get("top1")))
    show.table(f"{report['dataset']['name']}, {report['settings']['windows']} windows, from {models[0]}", heads, rows)
    if out is not None:
        show.line(f"wrote {out}")
