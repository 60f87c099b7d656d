"""dfq outliers fix: remove outliers, in a new checkpoint, and measure the effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.quant.scheme import QuantScheme
from dfrot.stages.outliers.settings import FixSettings, OutlierSettings, RecipeSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, dataset_option, out_option, path_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from

EVALUATION = {"seqlen": "eval_seqlen"}  # --seqlen is the length of the windows that outliers are measured on


@dfq_command("fix")
@click.argument("model", metavar="MODEL")
@options_of(FixSettings)
@path_option("--report", metavar="DIR", text="Result of dfq outliers on MODEL. Without it MODEL is measured first.")
@dataset_option(OutlierSettings)
@options_of(OutlierSettings, only=("seqlen",))
@options_of(RecipeSettings, only=("scheme", "algorithm", "seqlen", "windows"), rename=EVALUATION)
@out_option("Folder of the fixed checkpoint.")
@common
def command(
    model: str, report: Path | None, dataset: str | None, seqlen: int, out: Path, common: Common, **options: Any
) -> None:
    """Remove outliers from MODEL. MODEL stays as it is: the result is a checkpoint of its own."""
    common.prepare()
    from dfrot.hub import default_dataset
    from dfrot.stages.outliers.fix import fix

    QuantScheme.parse(options["scheme"]).require_integers("recipes of dfq outliers have")
    folder = model_folder(model)
    text: dict[str, Any] = {"dataset": dataset or default_dataset(model, folder), "seed": common.seed}
    recipe = settings_from(RecipeSettings, options, EVALUATION, **text)
    measured = OutlierSettings(seqlen=seqlen, perplexity=False, **text)
    settings = settings_from(FixSettings, options, outliers=measured, recipe=recipe)
    if common.plan:
        plan("outliers fix", {"model": folder, "report": report}, settings, out, common)
        return
    with show.progress() as progress:
        evidence = fix(folder, out, settings, report, progress=progress, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else _table(evidence, out)


def _table(evidence: dict[str, Any], out: Path) -> None:
    rows = [("none", evidence["before"])]
    rows += [(" + ".join(trial["fixes"]), trial) for trial in evidence["trials"]]
    rows.append((" + ".join(evidence["fixes"]) or "none", evidence["after"]))
    cells = []
    for name, trial in rows:
        kinds = [trial.get("plain"), trial.get("quantized")]
        cells.append(
            (name, *(v for kind in kinds for v in ((kind or {}).get("perplexity"), (kind or {}).get("ratio_ci"))))
        )
    heads = ("fixes", "perplexity", "paired ratio", "quantized", "paired ratio to before")
    show.table("", heads, cells)
    for name, reason in evidence.get("skipped", {}).items():
        show.note(f"{name}: {reason}")
    function = "the same function" if evidence["exact"] else "another function"
    sinks = f"; quantize it with --sink-tokens {evidence['sink_tokens']}" if evidence["sink_tokens"] else ""
    show.line(f"wrote {out}: {function}{sinks}")
