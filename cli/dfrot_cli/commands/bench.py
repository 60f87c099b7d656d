"""dfq bench: rotate here, the kernels and whole models in files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands import bench_draft, bench_generate, bench_kernels
from dfrot_cli.options import Common, common
from dfrot_cli.plan import plan


@click.group("bench")
def command() -> None:
    """Measure dfq itself, beside what it replaces."""


command.add_command(bench_draft.command)
command.add_command(bench_generate.command)
command.add_command(bench_kernels.command)


@command.command("rotate")
@click.option("--figure", is_flag=True, help="Instead: 4-bit error per token and rotation on generated activations.")
@click.option("--width", type=click.IntRange(16), default=4096, show_default=True, help="Hidden size.")
@click.option("--rows", type=click.IntRange(64), help="Calibration rows. Default: 32768; 2048 for the figure.")
@click.option("--rounds", type=click.IntRange(1), help="Refinement rounds. Default: 25; 12 for the figure.")
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True, help="Activation bits.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Also write JSON (and the plot) here.")
@common
def rotate(figure: bool, rows: int | None, rounds: int | None, out: Path | None, common: Common, **sizes: Any) -> None:
    """Time and memory of the refinement and of the straightforward algorithm, to the same objective."""
    common.prepare()
    from dfrot.bench.refinement.figure import figure_data, plot_figure
    from dfrot.bench.refinement.run import ROWS, compare_refinement
    from dfrot.errors import ExistsError
    from dfrot.files import write_json

    if out is not None and out.exists() and not common.overwrite:
        raise ExistsError(f"{out}: already exists; choose another --out, or replace it with --overwrite")
    sizes |= {"seed": common.seed, "rounds": rounds or (12 if figure else 25)}
    sizes["common" if figure else "rows"] = rows or (2048 if figure else ROWS)
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
        (name, len(one["curve"]) - 1, one["seconds"], one["curve"][-1][2], show.size(one["peak_bytes"]))
        for name, one in ((name, result[name]) for name in methods)
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
        show.table(title, ("tokens", *methods), [(kind, *found.values()) for kind, found in kinds.items()])
