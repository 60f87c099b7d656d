"""dfq eval kl: how far predictions are from the baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.ranks.single import Ranks
from dfrot.stages.evaluate.settings import KlSettings
from dfrot_cli import show
from dfrot_cli.commands.eval.options import keep, models_option, report_option, resolved
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.launch import ranked
from dfrot_cli.options import Common, common, dataset_option
from dfrot_cli.plan import numbered, plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("kl")
@models_option
@dataset_option(KlSettings)
@options_of(KlSettings, skip=("dataset",))
@report_option
@common
@ranked
def command(
    models: tuple[str, ...], out: Path | None, common: Common, dataset: str | None, ranks: Ranks, **options: Any
) -> None:
    """Measure the KL divergence from the first checkpoint, token by token: mean, quantiles, top-1 agreement.

    Perplexity can stay the same while predictions change; the divergence cannot."""
    common.prepare()
    from dfrot.hub import default_dataset
    from dfrot.stages.evaluate.kl import divergence

    with ranks.first_goes_ahead():
        folders = resolved(models, out, common)
    dataset = dataset or default_dataset(models[0], folders[0])
    settings = settings_from(KlSettings, options, dataset=dataset)
    if common.plan:
        plan("eval kl", numbered(folders), settings, out, common)
        return
    with show.progress() as progress:
        report = divergence(folders, settings, progress, ranks)
    peaks = ranks.peak_bytes()
    if not ranks.first:
        return
    keep(report, models, out)
    show.notes(report["results"])
    if common.json:
        show.as_json({**report, **show.peaks_record(peaks)})
        return
    _table(report, models[0], out)
    show.peaks(peaks)


def _table(report: dict[str, Any], baseline: str, out: Path | None) -> None:
    heads = ("model", "scheme", "perplexity", "KL", "95 % interval", "median", "90 %", "99 %", "99.9 %", "top-1")
    rows = []
    for result in report["results"]:
        quantiles = [result.get("kl_quantiles", {}).get(q) for q in ("0.5", "0.9", "0.99", "0.999")]
        numbers = [result.get(key) for key in ("scheme", "perplexity", "kl", "kl_ci")]
        rows.append((result["name"], *numbers, *quantiles, result.get("top1")))
    show.table(f"{report['dataset']['name']}, {report['settings']['windows']} windows, from {baseline}", heads, rows)
    if out is not None:
        show.line(f"wrote {out}")
