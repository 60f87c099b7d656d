"""dfq bench evaluate: the loss of a checkpoint, by dfq and by transformers."""

from __future__ import annotations

from typing import Any

from dfrot.bench.settings import EvaluateBenchSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, model_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("evaluate")
@model_option
@options_of(EvaluateBenchSettings)
@common
def command(model: str, common: Common, **options: Any) -> None:
    """Measure tokens per second and peak memory of the loss over windows of text: dfq's evaluation and transformers'
    own, in turns, on the same loaded model."""
    common.prepare()
    from dfrot.bench.evaluate import bench_evaluate

    folder = model_folder(model)
    settings = settings_from(EvaluateBenchSettings, options)
    if common.plan:
        plan("bench evaluate", {"model": folder}, settings, None, common)
        return
    with show.progress() as progress:
        result = bench_evaluate(folder, settings, progress)
    if common.json:
        show.as_json(result)
        return
    machine = result["machine"]
    title = (
        f"{folder.name}, {result['dtype']}, vocabulary of {result['vocabulary']}: {result['windows']} windows of "
        f"{result['seqlen']} tokens, batch {result['batch']}, {machine['threads']} threads, {machine['processor']}"
    )
    rows = [
        (name, run["tokens_per_s"], 100 * run["seconds"]["spread"], run["loss"], show.size(run["peak_bytes"]))
        for name, run in result["results"].items()
    ]
    show.table(title, ("", "tokens/s", "+-%", "loss", "peak memory"), rows)
    show.line(f"{show.cell(result['speedup'])} x transformers' rate; memory: above the loaded model")
