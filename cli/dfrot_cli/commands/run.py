"""dfq run: a recipe from the model to the measured result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dfrot_cli import planned_costs, show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common


@dfq_command("run")
@click.argument("recipe", type=click.Path(path_type=Path), metavar="RECIPE.yaml")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="A.B=C",
    help="Change one value of the recipe; null removes it; repeatable.",
)
@click.option("--check", is_flag=True, help="Fail unless every expected metric is met.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the run. Default: runs/NAME.")
@planned_costs.options
@common
def command(
    recipe: Path, changes: tuple[str, ...], check: bool, out: Path | None, common: Common, **options: Any
) -> None:
    """Run the stages that a recipe names: outliers_fix, rotate, calibrate, quantize, draft, export, eval, draft_eval.

    Finished stages of the same request are reused, interrupted ones continue. --seed replaces the recipe's seed.
    docs/guides/recipes.md lists the keys of a recipe; unknown ones are refused."""
    common.prepare()
    from dfrot.recipe.check import require
    from dfrot.recipe.recipe import load
    from dfrot.recipe.run import plan, run

    if click.get_current_context().get_parameter_source("seed") is ParameterSource.COMMANDLINE:
        changes = (*changes, f"seed={common.seed}")
    loaded = load(recipe, changes)
    if planned_costs.shown(loaded.model, loaded.stages, options, common, always=False):
        return
    folder = out or Path("runs") / loaded.name
    if common.plan:
        planned = plan(loaded, folder)
        show.as_json({"command": "run", **planned}) if common.json else _plan(planned)
        return
    with show.progress() as progress:
        report = run(loaded, folder, progress=progress, **common.stage())
    show.as_json({"out": str(folder), **report}) if common.json else _table(report, folder)
    if check:
        require(report["checks"])


def _plan(planned: dict[str, Any]) -> None:
    show.facts(f"plan: dfq run, recipe {planned['name']}", {name: planned[name] for name in ("model", "out", "digest")})
    show.table("", ("stage", "folder", "state"), [[row[key] for key in ("stage", "folder", "state")]
                                                  for row in planned["stages"]])  # fmt: skip
    for row in planned["stages"]:
        show.facts(row["stage"], _flat(row["settings"]))
    _expected([{"metric": name, **row} for name, row in planned["expect"].items()], ())


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _table(report: dict[str, Any], folder: Path) -> None:
    rows = [(name, str(folder / row["folder"]), row["digest"][:12]) for name, row in report["stages"].items()]
    show.table(f"{report['name']}: {report['model']}", ("stage", "folder", "digest"), rows)
    claimed = {row["metric"] for row in report["checks"]}
    show.table("", ("metric", "measured"), [item for item in report["metrics"].items() if item[0] not in claimed])
    _expected(report["checks"], ("measured", "difference", "passed"))
    show.line(f"wrote {folder / 'run.json'}")


def _expected(rows: list[dict[str, Any]], more: tuple[str, ...]) -> None:
    if rows:
        columns = ("metric", "value", "tolerance", "status", *more)
        show.table("", ("metric", "expected", *columns[2:]), [[row[key] for key in columns] for row in rows])
