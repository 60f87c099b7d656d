"""dfq outliers fix: remove outliers, in a new checkpoint, and say what it costs and buys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common, dataset_option, out_option, scheme_option
from dfrot_cli.plan import plan

MODES = "gains:fold|smooth|one|mean, massive:mean|zero|smooth, query:balance, prefix:tokens"


@click.command("fix")
@click.argument("model", metavar="MODEL")
@click.option("--fix", "fixes", multiple=True, metavar="NAME:MODE", help=f"Repeatable, applied in order: {MODES}.")
@click.option(
    "--search", is_flag=True, help="Add fixes while the quantized perplexity falls. Candidates: --fix, or all."
)
@click.option("--budget", type=click.IntRange(1), default=12, show_default=True, help="Trials of a search.")
@click.option("--report", type=click.Path(path_type=Path), metavar="DIR", help="Result of dfq outliers on MODEL.")
@dataset_option
@click.option(
    "--seqlen", type=click.IntRange(8), default=2048, show_default=True, help="Tokens measured for the report."
)
@scheme_option
@click.option("--algorithm", type=click.Choice(["rtn", "gptq"]), default="rtn", show_default=True)
@click.option("--windows", type=click.IntRange(1), default=8, show_default=True, help="Of the perplexities.")
@click.option("--eval-seqlen", type=click.IntRange(2), default=1024, show_default=True, help="Their length.")
@click.option("--quantized/--no-quantized", default=True, show_default=True, help="Measure the quantized model, too.")
@out_option("Folder of the fixed checkpoint.")
@common
def command(
    model: str,
    fixes: tuple[str, ...],
    search: bool,
    budget: int,
    report: Path | None,
    dataset: str | None,
    seqlen: int,
    quantized: bool,
    out: Path,
    common: Common,
    **recipe: Any,
) -> None:
    """Remove outliers from MODEL. MODEL is not touched: what comes out is a checkpoint of its own."""
    common.prepare()
    from dfrot.hub import default_dataset, resolve_model
    from dfrot.quant.scheme import QuantScheme
    from dfrot.stages.outliers.fix import fix
    from dfrot.stages.outliers.settings import FixSettings, OutlierSettings, RecipeSettings

    QuantScheme.parse(recipe["scheme"])
    folder = resolve_model(model)
    dataset = dataset or default_dataset(model, folder)
    how = RecipeSettings(dataset=dataset, seed=common.seed, seqlen=recipe.pop("eval_seqlen"), **recipe)
    measured = OutlierSettings(dataset=dataset, seqlen=seqlen, seed=common.seed, perplexity=False)
    settings = FixSettings(fixes, measured, how, quantized, search, budget)
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
            (name, *(v for one in kinds for v in ((one or {}).get("perplexity"), (one or {}).get("ratio_ci"))))
        )
    heads = ("fixes", "perplexity", "paired ratio", "quantized", "paired ratio to before")
    show.table("", heads, cells)
    for name, reason in evidence.get("skipped", {}).items():
        show.note(f"{name}: {reason}")
    said = "the same function" if evidence["exact"] else "another function"
    sinks = f"; quantize it with --sink-tokens {evidence['sink_tokens']}" if evidence["sink_tokens"] else ""
    show.line(f"wrote {out}: {said}{sinks}")
