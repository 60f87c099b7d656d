"""dfq compare: every method on one model, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common, dataset_option, model_option, out_option, seqlen_option
from dfrot_cli.plan import plan


@click.command("compare")
@model_option
@click.option("--scheme", "schemes", multiple=True, default=("w4a4kv4", "w3a3kv3"), show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of whatever is random.")
@dataset_option
@seqlen_option
@click.option("--windows", type=click.IntRange(1), help="Evaluate the first N windows only.")
@click.option("--samples", type=click.IntRange(1), default=128, show_default=True, help="Calibration windows.")
@click.option("--calibration-seqlen", type=click.IntRange(2), default=2048, show_default=True)
@click.option("--refine-seqlen", type=click.IntRange(2), default=2048, show_default=True, help="DFRot's sample.")
@click.option("--gamma", default="auto", show_default=True, metavar="X", help="Weight of massive tokens; paper: 100.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Windows per forward pass.")
@click.option("--decode", type=click.IntRange(0), default=32, show_default=True, help="Tokens of the speed test.")
@click.option("--tune", type=click.IntRange(0), default=0, show_default=True, help="Steps of a tuned row; 0: none.")
@click.option("--keep", is_flag=True, help="Keep every checkpoint in OUT/work.")
@out_option("Folder of compare.json and compare.md.")
@common
def command(model: str, out: Path, dataset: str | None, gamma: str, common: Common, **options: Any) -> None:
    """Run RTN and GPTQ with every rotation, measure all on the same windows, and print one table.

    Resumable cell by cell. Ends with the differences between rotations and what was claimed of them.
    """
    common.prepare()
    from dfrot.hub import default_dataset, resolve_model
    from dfrot.stages.compare.run import compare
    from dfrot.stages.compare.settings import CompareSettings

    folder = resolve_model(model)
    dataset = dataset or default_dataset(model, folder)
    weight = gamma if gamma == "auto" else float(gamma)
    settings = CompareSettings(dataset=dataset, gamma=weight, seed=common.seed, **options)
    if common.plan:
        plan("compare", {"model": folder}, settings, out, common)
        return
    with show.progress() as progress:
        report = compare(folder, out, settings, progress=progress, **common.stage())
    show.as_json(report) if common.json else _tables(report, out)


ROWS = ("perplexity", "spread", "ratio_to_bf16", "ratio_ci", "tokens_per_second", "decode_tokens_per_second")
HEADS = ("method", "seeds", "perplexity", "spread", "x bf16", "95 % windows", "tokens/s", "decode/s", "on disk")


def _tables(report: dict[str, Any], out: Path) -> None:
    for scheme, table in report["tables"].items():
        rows = [
            (row["method"], row["seeds"], *(row[key] for key in ROWS), show.size(row["bytes_on_disk"]))
            for row in table["rows"]
        ]
        show.table(f"{scheme}{' (simulated)' if table['simulated'] else ''}", HEADS, rows)
        pairs = [
            (
                f"{one['method']} / {one['against']}",
                one["ratio"],
                one["ratio_ci"],
                ", ".join(map(show.cell, one["ratio_by_seed"])),
            )
            for one in table["differences"]
        ]
        show.table("", ("difference", "ratio", "95 % windows", "by seed"), pairs)
        show.table(
            "", ("claim", "value", "holds"), [(one["claim"], one["value"], one["holds"]) for one in table["claims"]]
        )
    if report["objective"]:
        keys = ("massive_tokens", "massive_error_ratio", "common_error_ratio", "objective_ratio", "never_rises")
        heads = (
            "refinement / its start",
            "massive tokens",
            "massive error",
            "common error",
            "objective",
            "never rises",
        )
        show.table("", heads, [(one["rotation"], *(one[key] for key in keys)) for one in report["objective"]])
    show.line(f"wrote {out / 'compare.json'} and {out / 'compare.md'}")
