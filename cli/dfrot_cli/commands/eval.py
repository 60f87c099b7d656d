"""dfq eval: perplexity of one or more checkpoints on the same windows; divergence, tasks and speed beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands.eval_kl import kl
from dfrot_cli.commands.eval_speed import speed
from dfrot_cli.commands.eval_tasks import tasks
from dfrot_cli.options import Common, common, dataset_option, seqlen_option
from dfrot_cli.plan import numbered, plan


@click.group("eval")
def command() -> None:
    """Measure checkpoints."""


for part in (kl, tasks, speed):
    command.add_command(part)


@command.command("ppl")
@click.option("--model", "models", multiple=True, metavar="M", help="Repeatable; the first is the baseline.")
@dataset_option
@seqlen_option
@click.option("--windows", type=click.IntRange(1), help="Evaluate the first N windows only.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Windows per forward pass.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: the checkpoint's own.")
@click.option("--fake", is_flag=True, help="Run packed checkpoints as their simulated twins.")
@click.option("--kl", is_flag=True, help="KL divergence and top-1 agreement against the first checkpoint.")
@click.option("--decode", type=click.IntRange(0), default=0, help="Measure greedy decoding over N tokens.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Also write the JSON here.")
@common
def ppl(models: tuple[str, ...], out: Path | None, common: Common, dataset: str | None, **options: Any) -> None:
    """Perplexity by the GPTQ protocol; several checkpoints give one table with paired confidence intervals.

    Without --model, in a folder that a run made, evaluates the checkpoints of that run.
    """
    common.prepare(cuda=True)
    from dfrot.errors import ExistsError
    from dfrot.files import write_json
    from dfrot.hub import checkpoints_in, default_dataset, resolve_model
    from dfrot.stages.evaluate.perplexity import evaluate
    from dfrot.stages.evaluate.settings import PerplexitySettings

    if out is not None and out.exists() and not common.overwrite:
        raise ExistsError(f"{out}: already exists; choose another --out, or replace it with --overwrite")
    folders = [resolve_model(model) for model in models] or checkpoints_in(Path.cwd())
    dataset = dataset or default_dataset(models[0] if models else "", folders[0])
    settings = PerplexitySettings(dataset=dataset, threads=common.threads, device=common.device, **options)
    if common.plan:
        plan("eval ppl", numbered(folders), settings, out, common)
        return
    with show.progress() as progress:
        report = evaluate(folders, settings, progress)
    for result, name in zip(report["results"], models or [folder.name for folder in folders]):
        result["name"] = name
    if out is not None:
        write_json(out, report)
    show.as_json(report) if common.json else _table(report, out)


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
