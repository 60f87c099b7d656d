"""dfq eval sensitivity: which part of a model costs what when it alone is rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.stages.sensitivity.settings import SensitivitySettings
from dfrot_cli import show
from dfrot_cli.commands.eval.options import keep, report_option, resolved
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common, dataset_option, model_option, path_option
from dfrot_cli.plan import numbered, plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("sensitivity")
@model_option
@path_option("--rotated", text="Its rotated form, measured beside it.", metavar="DIR")
@dataset_option(SensitivitySettings)
@options_of(SensitivitySettings, skip=("dataset",))
@path_option("--figure", text="Also draw the costs, as SVG, into this file.", metavar="FILE")
@report_option
@common
def command(
    model: str,
    rotated: Path | None,
    figure: Path | None,
    out: Path | None,
    common: Common,
    dataset: str | None,
    **options: Any,
) -> None:
    """Round one part of a 16-bit model at a time: inputs of linears, weights, keys, values, embedding, head; one layer
    at a time; one class of tokens at a time. Shows what each costs alone."""
    common.prepare()
    from dfrot.files import write_bytes
    from dfrot.hub import default_dataset
    from dfrot.stages.sensitivity.figure import sensitivity_figure
    from dfrot.stages.sensitivity.run import sensitivity

    models = [model, *([] if rotated is None else [str(rotated)])]
    folders = resolved(models, out, common)
    dataset = dataset or default_dataset(model, folders[0])
    settings = settings_from(SensitivitySettings, options, dataset=dataset)
    if common.plan:
        plan("eval sensitivity", numbered(folders), settings, out, common)
        return
    with show.progress() as progress:
        report = sensitivity(folders[0], settings, rotated=[*folders, None][1], progress=progress)
    keep(report, models, out)
    if figure is not None:
        write_bytes(figure, sensitivity_figure(report).encode())
    if common.json:
        show.as_json(report)
        return
    _tables(report)
    for file in (path for path in (out, figure) if path is not None):
        show.line(f"wrote {file}")


def _tables(report: dict[str, Any]) -> None:
    results = report["results"]
    one = len(results) == 1
    heads = ("rounded", *(f"{key}{'' if one else f', {name}'}" for name in _names(results) for key in KEYS))
    parts: dict[str, list[Any]] = {"nothing": []}
    for number, result in enumerate(results):
        parts["nothing"] += [result["perplexity"], 1.0, 0.0, 1.0]
        for variant in (variant for variant in result["variants"] if variant["layer"] is None):
            row = parts.setdefault(variant["part"], [None] * (number * len(KEYS)))
            row += [variant[key] for key in ("perplexity", "ratio", "kl", "top1")]
    rows = [(part, *values, *[None] * (len(heads) - 1 - len(values))) for part, values in parts.items()]
    settings = report["settings"]
    show.table(f"{report['dataset']['name']}, {settings['windows']} windows, {settings['scheme']}", heads, rows)
    for result, name in zip(results, _names(results)):
        _worst_layers(result, name)
        if result["tokens"] is not None:
            counts = ", ".join(f"{count} {kind}" for kind, count in result["tokens"].items())
            show.line(f"{name}: tokens that belong to a class in some layer: {counts}")


KEYS = ("perplexity", "ratio", "KL", "top-1")


def _names(results: list[dict[str, Any]]) -> list[str]:
    return [Path(result["name"]).name for result in results]


def _worst_layers(result: dict[str, Any], name: str, most: int = 3) -> None:
    """The layers that cost most, for every kind of part."""
    layers = [variant for variant in result["variants"] if variant["layer"] is not None]
    rows = []
    for part in dict.fromkeys(variant["part"] for variant in layers):
        ranked = sorted((variant for variant in layers if variant["part"] == part), key=lambda row: -row["kl"])
        total = sum(variant["kl"] for variant in ranked)
        worst = ", ".join(f"{row['layer']} ({show.cell(row['kl'])})" for row in ranked[:most])
        rows.append((part, worst, total))
    if rows:
        show.table(f"{name}: one layer rounded", ("rounded", "layers that cost most (KL)", "sum over layers"), rows)
