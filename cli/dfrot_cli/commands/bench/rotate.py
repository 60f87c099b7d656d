"""dfq bench rotate: the refinement beside the straightforward algorithm, or a figure of its effect."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dfrot.bench.settings import FigureBenchSettings, RefinementBenchSettings
from dfrot.settings import default_of
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common, file_option, require_new
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import help_of, options_of, settings_from

ROWS = {"common": "rows"}  # --rows of the figure


def _either(name: str, figure_name: str) -> dict[str, Any]:
    """What an option has whose default depends on --figure."""
    race, figure = default_of(RefinementBenchSettings, name), default_of(FigureBenchSettings, figure_name)
    text = f"{help_of(RefinementBenchSettings, name)} Default: {race}; {figure} with --figure."
    return {"default": None, "show_default": False, "help": text}


@dfq_command("rotate")
@click.option("--figure", is_flag=True, help="Draw 4-bit error per token by rotation, on generated activations.")
@options_of(RefinementBenchSettings, more={"rows": _either("rows", "common"), "rounds": _either("rounds", "rounds")})
@file_option("Also write JSON (and the figure) to this folder.", metavar="DIR")
@common
def command(figure: bool, out: Path | None, common: Common, **options: Any) -> None:
    """Measure time and memory of the refinement and of the straightforward algorithm, to the same objective."""
    common.prepare()
    from dfrot.bench.refinement.figure import figure_data, plot_figure
    from dfrot.bench.refinement.run import compare_refinement
    from dfrot.files import write_json

    require_new(out, common)
    kind: type[Any] = FigureBenchSettings if figure else RefinementBenchSettings
    sizes = asdict(settings_from(kind, options, ROWS if figure else None, seed=common.seed))
    if common.plan:
        plan("bench rotate", {}, sizes, out, common)
        return
    with show.progress() as progress:
        result = (figure_data if figure else compare_refinement)(**sizes, progress=progress)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / ("figure.json" if figure else "refinement.json"), result)
        if figure:
            plot_figure(result, out / "figure.png")
    if common.json:
        show.as_json(result)
        return
    _figure(result) if figure else _race(result)
    if out is not None:
        show.line(f"wrote {out}")


def _race(result: dict[str, Any]) -> None:
    title = (
        f"{result['rows']} rows of width {result['width']}, {result['massive']} massive, gamma {result['gamma']:.4g}"
    )
    methods = ("straightforward", "refine")
    rows = [
        (name, len(run["curve"]) - 1, run["seconds"], run["curve"][-1][2], show.size(run["peak_bytes"]))
        for name, run in ((name, result[name]) for name in methods)
    ]
    show.table(title, ("method", "rounds", "seconds", "objective", "peak memory"), rows)
    keys = ("objective", "straightforward_seconds", "refine_seconds", "speedup")
    levels = [(level["round"], *(level.get(key) for key in keys)) for level in result["levels"]]
    show.table("seconds until the straightforward method's objective is reached", ("its round", *keys), levels)
    show.line(f"the same objective within 0.1 %: {show.cell(result['speedup'])} x sooner")


def _figure(result: dict[str, Any]) -> None:
    for mode, kinds in result["means"].items():
        methods = list(next(iter(kinds.values())))
        title = f"mean error / norm of a token, {result['bits']} bit, {mode}, width {result['width']}"
        show.table(title, ("tokens", *methods), [(kind, *errors.values()) for kind, errors in kinds.items()])
