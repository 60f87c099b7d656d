"""dfq eval ppl: perplexity of one or more checkpoints on the same windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.ranks.single import Ranks
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot_cli import show
from dfrot_cli.commands.eval.options import keep, report_option
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.launch import ranked
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, dataset_option, require_new
from dfrot_cli.plan import numbered, plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("ppl")
@click.option("--model", "models", multiple=True, metavar="M", help="A checkpoint; repeatable, the baseline first.")
@dataset_option(PerplexitySettings)
@options_of(PerplexitySettings, skip=("dataset", "split", "threads", "device", "level"))
@report_option
@common
@ranked
def command(
    models: tuple[str, ...], out: Path | None, common: Common, dataset: str | None, ranks: Ranks, **options: Any
) -> None:
    """Measure perplexity by the GPTQ protocol. Several checkpoints give one table with paired confidence intervals.

    Without --model, in the folder of a run, this evaluates the checkpoints of that run.
    """
    common.prepare(cuda=True)
    from dfrot.hub import checkpoints_in, default_dataset
    from dfrot.stages.evaluate.perplexity import evaluate

    require_new(out, common)
    with ranks.first_goes_ahead():
        folders = [model_folder(model) for model in models] or checkpoints_in(Path.cwd())
    dataset = dataset or default_dataset(models[0] if models else "", folders[0])
    machine: dict[str, Any] = {"threads": common.threads, "device": common.device}
    settings = settings_from(PerplexitySettings, options, dataset=dataset, **machine)
    if common.plan:
        plan("eval ppl", numbered(folders), settings, out, common)
        return
    with show.progress() as progress:
        report = evaluate(folders, settings, progress, ranks)
    peaks = ranks.peak_bytes()
    if not ranks.first:
        return
    keep(report, models or [folder.name for folder in folders], out)
    show.notes(report["results"])
    if common.json:
        show.as_json({**report, **show.peaks_record(peaks)})
        return
    _table(report, out)
    show.peaks(peaks)


def _table(report: dict[str, Any], out: Path | None) -> None:
    columns = {
        "scheme": "scheme",
        "perplexity": "perplexity",
        "ci": "95 % interval",
        "ratio_to_first": "ratio",
        "ratio_ci": "paired interval",
        "kl": "KL",
        "top1": "top-1",
        "tokens_per_second": "tokens/s",
        "decode_tokens_per_second": "decode/s",
    }
    used = [key for key in columns if any(result.get(key) is not None for result in report["results"])]
    rows = [
        [result["name"], *(result[key] for key in used), show.size(result["bytes_on_disk"])]
        for result in report["results"]
    ]
    title = f"{report['dataset']['name']}, {report['results'][0]['windows']} windows, {report['protocol']['id']}"
    show.table(title, ("model", *(columns[key] for key in used), "on disk"), rows)
    if out is not None:
        show.line(f"wrote {out}")
