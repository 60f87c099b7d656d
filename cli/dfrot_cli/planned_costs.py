"""`--plan` with costs: disk, memory, arithmetic and hours, from a model's config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfrot.planning.settings import CostSettings
from dfrot_cli import show
from dfrot_cli.options import Common
from dfrot_cli.setting_options import options_of, settings_from

options = options_of(CostSettings)
"""--on, --config, --processes and --network."""
shared_options = options_of(CostSettings, skip=("seed", "processes"))
"""The same for a `launch.ranked` command, which has --processes already."""


def named(given: Mapping[str, Any]) -> bool:
    """Whether an option of a plan of costs is among the parameters of a command."""
    return bool(given["on"] or given["config"] or given["processes"] > 1)


def shown(model: str, stages: Mapping[str, Any], given: dict[str, Any], common: Common, always: bool = True) -> bool:
    """Whether the plan that was asked for is one of costs, which is then printed: a machine or a configuration is named
    or, with `always`, the model is not on this machine. given: parameters of the command, --on and --config are taken
    out of them; stages: settings by stage name."""
    costs = settings_from(CostSettings, given)
    if not common.plan:
        _refuse_without_plan(costs)
        return False
    from dfrot.hub import find_local

    if (
        costs.on is None
        and costs.config is None
        and costs.processes == 1
        and not (always and find_local(model) is None)
    ):
        return False
    _show(model, stages, costs, common)
    return True


def _refuse_without_plan(costs: CostSettings) -> None:
    from dfrot.errors import InputError

    given = {"on": costs.on is not None, "config": costs.config is not None, "processes": costs.processes > 1}
    for name, named in given.items():
        if named:
            raise InputError(f"`{name}` belongs to `plan`; leave it out, or give both", field=(name, "plan"))


def _show(model: str, stages: Mapping[str, Any], costs: CostSettings, common: Common) -> None:
    """Print what the stages cost for a model of which only config.json need be here."""
    from dfrot.hub import find_config
    from dfrot.planning.estimate import estimate

    config = costs.config if costs.config is not None else find_config(model)
    plan = estimate(Path(config), stages, costs.on or "this", costs.processes, costs.network)
    if common.json:
        show.as_json({"command": "plan", "model": model, **plan})
        return
    columns = ("stage", "result", "on the way", "memory", "products", "read", "written", "hours")
    rows = [_row(row["stage"], row, row["scratch_bytes"]) for row in plan["stages"]]
    if len(rows) > 1:
        rows.append(_row("together", plan["total"], plan["total"]["peak_disk_bytes"]))
    show.table(f"plan: {model}", columns, rows)
    show.line(f"hours on {plan['machine']}; products in FLOPs; together: the most disk at a time")
    if len(rows) > 1:
        show.line(f"needs {show.size(plan['total']['peak_disk_bytes'])} of disk besides the model")
    if costs.processes > 1:
        _show_ranks(plan, costs)
    for note in plan["notes"]:
        show.note(f"note: {note}")
    rates = {kind: f"{rate['per_second']:.3g} {rate['unit']}/s" for kind, rate in plan["rates"].items()}
    show.facts("rates", rates)


def _show_ranks(plan: Mapping[str, Any], costs: CostSettings) -> None:
    """Print the hours on several ranks, and what they consist of."""
    kinds = ("alone", "shared", "network", "seconds")
    rows = []
    for row in plan["stages"]:
        on = row["on_ranks"]
        hours = (f"{on[kind] / 3600:.4g}" for kind in kinds)
        rows.append((row["stage"], *hours, f"{row['seconds'] / on['seconds']:.3g}"))
    heads = ("stage", "not shared", "shared", "network", "hours", "times as fast")
    show.table(f"simulated: {costs.processes} ranks, {costs.network:g} Gb/s each", heads, rows)


def _row(name: str, row: Mapping[str, Any], scratch: int) -> tuple[str, ...]:
    sizes = (show.size(row[key]) for key in ("bytes_read", "bytes_written"))
    return (
        name,
        show.size(row["disk_bytes"]),
        show.size(scratch),
        show.size(row["memory_bytes"]),
        f"{row['flops']:.3g}",
        *sizes,
        f"{row['hours']:.4g}",
    )
